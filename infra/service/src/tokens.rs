//! Bearer tokens: `ls_<role>_<43 characters>`, of which only the BLAKE3 is kept.
//!
//! The role in the token is for people who find one; what counts is the role in the list. A random token of 256 bits
//! needs no slow hash: there is nothing to guess.

use std::{collections::BTreeSet, fmt, path::Path, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use longshore_schemas::{
    NodeId, RegionName, Timestamp,
    http::{Identity, Role},
};
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
    /// Of the role node: whom it lets in. Without it, any node of any region, as often as it is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrols: Option<Enrols>,
}

/// Which nodes may enrol with a token.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Enrols {
    /// None: in all regions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regions: Option<BTreeSet<RegionName>>,
    /// None: whatever they are called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodePattern>,
    /// For one node of each region.
    pub once: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Enrols {
    /// Why not this node, by what the token itself says. Whether it was used before is for the region to know.
    pub fn check(&self, region: &RegionName, node: &NodeId, now: Timestamp) -> Result<(), String> {
        if let Some(until) = self.until.filter(|until| *until <= now) {
            return Err(format!("the enrolment token was good until {until}"));
        }
        if let Some(regions) = self.regions.as_ref().filter(|regions| !regions.contains(region)) {
            let names: Vec<_> = regions.iter().map(RegionName::as_str).collect();
            return Err(format!("the enrolment token is for {}, and this is region {region}", names.join(" and ")));
        }
        match self.nodes.as_ref().filter(|nodes| !nodes.is_of(node)) {
            Some(nodes) => Err(format!("the enrolment token is for nodes named {nodes}, and this one is {node}")),
            None => Ok(()),
        }
    }
}

/// A node's name, or how names begin: `web-*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodePattern {
    /// A whole name, or how names begin.
    name: String,
    is_beginning: bool,
}

impl NodePattern {
    fn is_of(&self, node: &NodeId) -> bool {
        let node = node.as_str();
        if self.is_beginning { node.starts_with(&self.name) } else { node == self.name }
    }
}

impl FromStr for NodePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, is_beginning) = text.strip_suffix('*').map_or((text, false), |beginning| (beginning, true));
        // What a name that begins so could be.
        let whole = if is_beginning { format!("{name}0") } else { name.to_owned() };
        match whole.parse::<NodeId>() {
            Ok(_) => Ok(Self { name: name.to_owned(), is_beginning }),
            Err(error) => {
                Err(format!("{text:?} is neither a node's name nor the beginning of some, as web-*: {error}"))
            }
        }
    }
}

impl TryFrom<String> for NodePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NodePattern> for String {
    fn from(pattern: NodePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for NodePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, if self.is_beginning { "*" } else { "" })
    }
}

/// A new token. The text is not kept anywhere: hand it out now.
pub fn generate(subject: impl Into<String>, role: Role) -> (String, TokenRecord) {
    let mut secret = [0; SECRET_BYTES];
    rand::fill(&mut secret);
    let token = format!("ls_{}_{}", name(role), BASE64.encode(secret));
    let record = TokenRecord { subject: subject.into(), role, hash: blake3::hash(token.as_bytes()), enrols: None };
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
        Self::of_file(path, durable::read(path)?.as_deref())
    }

    /// As [`Tokens::load`], of a file that was read already.
    pub fn of_file(path: &Path, content: Option<&[u8]>) -> Result<Self, Error> {
        let Some(bytes) = content else { return Ok(Self::default()) };
        let records: Vec<TokenRecord> = serde_json::from_slice(bytes).map_err(|error| Error::content(path, &error))?;
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

    /// Only these stay in the list.
    pub fn retain(&mut self, keep: impl FnMut(&TokenRecord) -> bool) {
        self.0.retain(keep);
    }

    pub fn push(&mut self, record: TokenRecord) {
        self.0.push(record);
    }

    /// Whose token this is. Takes as long for a wrong token as for a right one.
    pub fn verify(&self, token: &str) -> Option<Identity> {
        self.find(token).map(|record| Identity { subject: record.subject.clone(), role: record.role })
    }

    /// As [`Tokens::verify`], with all that the list says of it.
    pub fn find(&self, token: &str) -> Option<&TokenRecord> {
        let hash = blake3::hash(token.as_bytes());
        let mut found = None;
        for record in &self.0 {
            if bool::from(record.hash.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(record);
            }
        }
        found
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
    fn a_token_may_be_for_some_nodes_only() {
        let (region, other): (RegionName, RegionName) = ("eu".parse().expect("valid"), "us".parse().expect("valid"));
        let node = |name: &str| -> NodeId { name.parse().expect("valid") };
        let pattern = |text: &str| -> NodePattern { text.parse().expect(text) };
        let anyone = Enrols::default();
        let web = Enrols { nodes: Some(pattern("web-*")), ..Enrols::default() };
        let eu = Enrols { regions: Some([region.clone()].into()), until: Some(Timestamp(5)), ..Enrols::default() };
        let check = |enrols: &Enrols, region, name: &str, now| enrols.check(region, &node(name), Timestamp(now));
        for (enrols, region, name) in [(&anyone, &other, "x"), (&web, &other, "web-1"), (&eu, &region, "x")] {
            assert_eq!(check(enrols, region, name, 4), Ok(()));
        }
        let refused = |enrols, region, name, now| check(enrols, region, name, now).expect_err("refused");
        assert!(refused(&web, &region, "db-1", 0).contains("web-*"));
        assert!(refused(&eu, &other, "x", 0).contains("eu"));
        assert!(refused(&eu, &region, "x", 5).contains("until"));
        for wrong in ["", "a b", "*-a", "we*b", "-*", "a..*"] {
            assert!(wrong.parse::<NodePattern>().is_err(), "{wrong}");
        }
        assert!(pattern("*").is_of(&node("x")) && !pattern("x").is_of(&node("xy")));

        let (_, record) = generate("fleet", Role::Node);
        let record = TokenRecord { enrols: Some(Enrols { once: true, ..web }), ..record };
        let json = serde_json::to_string(&record).expect("JSON");
        assert_eq!(serde_json::from_str::<TokenRecord>(&json).expect(&json), record);
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
