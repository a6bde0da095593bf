//! Credentials that say what they are for and need no list: whoever checks one made it, with the same key.
//!
//! A credential is `base64url(JSON) . base64url(keyed BLAKE3 of the JSON)`. It is readable by its holder and cannot be
//! altered. The MAC's key is derived for one purpose, so an attempt's credential never passes for a node's. What a credential is worth
//! (whether the attempt still runs) is for the verifier to look up.

use std::{fmt, path::Path};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use serde::{Serialize, de::DeserializeOwned};
use subtle::ConstantTimeEq;

use crate::{Error, durable};

/// Longest credential that is looked at, in bytes.
pub const CREDENTIAL_BYTES_MAX: usize = 4096;

const KEY_BYTES: usize = 32;
/// Sets these keys apart from whatever else is derived from the same secret.
const CONTEXT: &str = "longshore 2026 signed credentials: ";

/// Makes and checks the credentials of one purpose.
#[derive(Clone)]
pub struct Signer {
    secret: [u8; KEY_BYTES],
    key: [u8; KEY_BYTES],
}

impl Signer {
    /// A signer without a particular purpose; [`Signer::for_purpose`] gives those to use.
    pub fn new(secret: [u8; KEY_BYTES]) -> Self {
        Self { secret, key: derive(&secret, "") }
    }

    /// A signer of the same secret whose credentials no other purpose accepts.
    #[must_use]
    pub fn for_purpose(&self, purpose: &str) -> Self {
        Self { secret: self.secret, key: derive(&self.secret, purpose) }
    }

    /// The signer of a key file, which is made (readable by its owner only) if it is not there.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        let Some(hex) = durable::read(path)? else {
            let mut secret = [0; KEY_BYTES];
            rand::fill(&mut secret);
            let hex = blake3::Hash::from_bytes(secret).to_hex();
            durable::write(path, hex.as_bytes(), durable::PRIVATE_MODE)?;
            return Ok(Self::new(secret));
        };
        let secret = blake3::Hash::from_hex(hex.trim_ascii());
        let secret = secret.map_err(|_| Error::content(path, "a key is 64 hexadecimal digits"))?;
        Ok(Self::new(*secret.as_bytes()))
    }

    /// A credential that carries this.
    pub fn sign<T: Serialize>(&self, payload: &T) -> Result<String, serde_json::Error> {
        let json = serde_json::to_vec(payload)?;
        let mac = blake3::keyed_hash(&self.key, &json);
        Ok(format!("{}.{}", BASE64.encode(&json), BASE64.encode(mac.as_bytes())))
    }

    /// What the credential carries, if it was made by this key for this purpose.
    pub fn verify<T: DeserializeOwned>(&self, credential: &str) -> Option<T> {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return None;
        }
        let (json, mac) = credential.split_once('.')?;
        let (json, mac) = (BASE64.decode(json).ok()?, BASE64.decode(mac).ok()?);
        let expected = blake3::keyed_hash(&self.key, &json);
        let same = bool::from(expected.as_bytes()[..].ct_eq(&mac));
        if same { serde_json::from_slice(&json).ok() } else { None }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(key hidden)")
    }
}

fn derive(secret: &[u8; KEY_BYTES], purpose: &str) -> [u8; KEY_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(secret);
    hasher.update(purpose.as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Payload = (String, u32);

    fn payload() -> Payload {
        ("default-17".to_owned(), 2)
    }

    #[test]
    fn only_the_same_key_and_purpose_verify() {
        let signer = Signer::new([1; 32]).for_purpose("attempt");
        let credential = signer.sign(&payload()).expect("signed");
        assert_eq!(signer.verify::<Payload>(&credential), Some(payload()));
        for other in [
            Signer::new([2; 32]).for_purpose("attempt"),
            Signer::new([1; 32]).for_purpose("node"),
            Signer::new([1; 32]),
        ] {
            assert_eq!(other.verify::<Payload>(&credential), None);
        }
    }

    #[test]
    fn a_key_file_gives_the_same_signer_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let credential = Signer::load_or_create(&path).expect("made").sign(&payload()).expect("signed");
        assert!(Signer::load_or_create(&path).expect("read").verify::<Payload>(&credential).is_some());
        std::fs::write(&path, "short").expect("written");
        Signer::load_or_create(&path).expect_err("no key");
    }

    proptest! {
        #[test]
        fn no_altered_credential_verifies(at in any::<prop::sample::Index>(), with in "[ -~]") {
            let signer = Signer::new([1; 32]);
            let mut credential = signer.sign(&payload()).expect("signed");
            let at = at.index(credential.len());
            let before = credential.clone();
            credential.replace_range(at..=at, &with);
            prop_assert!(credential == before || signer.verify::<Payload>(&credential).is_none());
        }

        #[test]
        fn any_text_is_survived(text in ".*") {
            prop_assert!(Signer::new([1; 32]).verify::<Payload>(&text).is_none());
        }
    }
}
