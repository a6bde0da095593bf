//! Bearer tokens: `ls_<role>_<43 characters>`, of which only the BLAKE3 is kept.
//!
//! The role in the token is for people who find one; what counts is the role in the list. A random token of 256 bits
//! needs no slow hash: there is nothing to guess.

use std::path::Path;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use longshore_schemas::http::{Identity, Role};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::{Error, durable};

/// Most tokens in one list. Every check looks at each, so that it takes equally long for all.
pub const TOKENS_MAX: usize = 10_000;

const SECRET_BYTES: usize = 32;

/// A token as the list keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// Whose it is: the actor of what is done with it.
    pub subject: String,
    pub role: Role,
    /// BLAKE3 of the token, in hexadecimal.
    #[serde(with = "hex")]
    pub hash: blake3::Hash,
}

/// A new token. The text is not kept anywhere: hand it out now.
pub fn generate(subject: impl Into<String>, role: Role) -> (String, TokenRecord) {
    let mut secret = [0; SECRET_BYTES];
    rand::fill(&mut secret);
    let token = format!("ls_{}_{}", name(role), BASE64.encode(secret));
    let record = TokenRecord { subject: subject.into(), role, hash: blake3::hash(token.as_bytes()) };
    (token, record)
}

/// A role as it is written in JSON and in tokens.
pub fn name(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Builder => "builder",
        Role::Deployer => "deployer",
        Role::Admin => "admin",
        Role::Worker => "worker",
        Role::Node => "node",
    }
}

/// The tokens that are known.
#[derive(Debug, Clone, Default)]
pub struct Tokens(Vec<TokenRecord>);

impl Tokens {
    pub fn new(records: Vec<TokenRecord>) -> Self {
        Self(records)
    }

    /// Reads a list that [`Tokens::save`] wrote. A missing file is an empty list.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let Some(bytes) = durable::read(path)? else { return Ok(Self::default()) };
        let records: Vec<TokenRecord> = serde_json::from_slice(&bytes).map_err(|error| Error::content(path, &error))?;
        if records.len() > TOKENS_MAX {
            return Err(Error::content(path, &format!("it lists more than {TOKENS_MAX} tokens")));
        }
        Ok(Self(records))
    }

    /// Writes the list, readable by its owner only.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let json = serde_json::to_vec_pretty(&self.0).map_err(|error| Error::content(path, &error))?;
        durable::write(path, &json, durable::PRIVATE_MODE)
    }

    pub fn records(&self) -> &[TokenRecord] {
        &self.0
    }

    pub fn push(&mut self, record: TokenRecord) {
        self.0.push(record);
    }

    /// Whose token this is. Takes as long for a wrong token as for a right one.
    pub fn verify(&self, token: &str) -> Option<Identity> {
        let hash = blake3::hash(token.as_bytes());
        let mut found = None;
        for record in &self.0 {
            if bool::from(record.hash.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(record);
            }
        }
        found.map(|record| Identity { subject: record.subject.clone(), role: record.role })
    }
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(hash: &blake3::Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hash.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<blake3::Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(text).map_err(|_| de::Error::custom("a token's hash is 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_hash_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("tokens.json");
        assert!(Tokens::load(&path).expect("no file is no error").records().is_empty());
        let (admin, admin_record) = generate("ada", Role::Admin);
        let (worker, worker_record) = generate("build-1", Role::Worker);
        let mut tokens = Tokens::new(vec![admin_record]);
        tokens.push(worker_record);
        tokens.save(&path).expect("saved");

        let text = std::fs::read_to_string(&path).expect("there");
        assert!(!text.contains(&admin) && !text.contains(&worker), "{text}");
        let tokens = Tokens::load(&path).expect("loaded");
        assert_eq!(tokens.verify(&admin), Some(Identity { subject: "ada".to_owned(), role: Role::Admin }));
        assert_eq!(tokens.verify(&worker).map(|identity| identity.role), Some(Role::Worker));
        for wrong in ["", "ls_admin_", &admin[1..], &admin.to_uppercase()] {
            assert_eq!(tokens.verify(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tokens_are_new_each_time_and_say_their_role() {
        let (one, two) = (generate("x", Role::Node).0, generate("x", Role::Node).0);
        assert_ne!(one, two);
        assert!(one.starts_with("ls_node_") && one.len() == "ls_node_".len() + 43, "{one}");
    }

    #[test]
    fn role_names_are_those_of_json() {
        for role in [Role::Viewer, Role::Builder, Role::Deployer, Role::Admin, Role::Worker, Role::Node] {
            assert_eq!(serde_json::json!(role), name(role));
        }
    }
}
