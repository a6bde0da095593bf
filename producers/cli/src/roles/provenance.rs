//! The key that provenance is signed with.
//!
//! ```text
//! [provenance]
//! key_file = "/etc/longshore/provenance.key"   # LONGSHORE_PROVENANCE_KEY_FILE: by default, in the folder of secrets
//! key = "-----BEGIN PRIVATE KEY-----\n…"        # or the key itself, as LONGSHORE_PROVENANCE_KEY
//! ```
//!
//! It is an ed25519 key in PEM. `longshore secrets` and `longshore up` make one, and beside it `provenance.pub`, which is for everyone.
//! To replace it: give the new public key to all who verify, beside the old one; then give the new key to the control nodes.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use longshore_provenance::SigningKey;
use longshore_service::durable;
use serde::Deserialize;

/// What the environment may set.
pub(crate) const KEYS: [&str; 2] = ["provenance.key", "provenance.key_file"];
/// In the folder of secrets.
const KEY_FILE: &str = "provenance.key";
pub(crate) const PUBLIC_FILE: &str = "provenance.pub";

#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Provenance {
    key: Option<String>,
    key_file: Option<PathBuf>,
}

impl std::fmt::Debug for Provenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Provenance(key hidden, file {:?})", self.key_file)
    }
}

impl Provenance {
    /// The key to sign with. It is not made here: control nodes that each had their own would be trusted by nobody.
    pub(crate) fn key(&self, secrets: &Path) -> anyhow::Result<SigningKey> {
        let file = match (&self.key, &self.key_file) {
            (Some(_), Some(_)) => bail!("give provenance.key or provenance.key_file, not both"),
            (Some(key), None) => {
                return SigningKey::from_pem(key.as_bytes()).map_err(|error| anyhow!("provenance.key: {error}"));
            }
            (None, Some(file)) => file.clone(),
            (None, None) => secrets.join(KEY_FILE),
        };
        let Some(pem) = durable::read(&file)? else {
            bail!(
                "there is no {}, which provenance is signed with: `longshore secrets` makes it, where it is missing",
                file.display()
            );
        };
        SigningKey::from_pem(&pem).map_err(|error| anyhow!("{}: {error}", file.display()))
    }
}

/// Makes the key and its public half in the folder of secrets, unless they are there.
pub(crate) fn make(secrets: &Path) -> anyhow::Result<()> {
    let (file, public) = (secrets.join(KEY_FILE), secrets.join(PUBLIC_FILE));
    if durable::read(&file)?.is_none() {
        let mut seed = [0; 32];
        rand::fill(&mut seed);
        durable::write(&file, SigningKey::pem_of_seed(&seed).as_bytes(), durable::PRIVATE_MODE)?;
    }
    // There may be further keys in it, of earlier and later times.
    if durable::read(&public)?.is_none() {
        let key = Provenance::default().key(secrets)?;
        durable::write(&public, key.public().pem().as_bytes(), durable::SHARED_MODE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use longshore_provenance::TrustedKeys;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_found_in_its_three_places() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = Provenance::default().key(folder.path()).expect_err("not made").to_string();
        assert!(missing.contains("provenance.key") && missing.contains("longshore secrets"), "{missing}");
        make(folder.path()).expect("made");
        let key = Provenance::default().key(folder.path()).expect("read");
        make(folder.path()).expect("there");
        assert_eq!(Provenance::default().key(folder.path()).expect("read").public(), key.public());
        let public = std::fs::read(folder.path().join(PUBLIC_FILE)).expect("there");
        assert_eq!(TrustedKeys::from_pem(&public).expect("a key").keys(), [*key.public()]);

        let pem = SigningKey::pem_of_seed(&[1; 32]);
        let other = folder.path().join("other");
        std::fs::write(&other, &pem).expect("written");
        let of_file = Provenance { key_file: Some(other.clone()), key: None };
        let of_text = Provenance { key: Some(pem.clone()), key_file: None };
        assert_eq!(
            of_file.key(folder.path()).expect("read").public(),
            of_text.key(folder.path()).expect("read").public()
        );
        let both = Provenance { key: Some(pem), key_file: Some(other.clone()) }.key(folder.path());
        assert!(both.expect_err("two").to_string().contains("not both"));
        std::fs::write(&other, "no key").expect("written");
        let error = of_file.key(folder.path()).expect_err("no key").to_string();
        assert!(error.contains("other: it is no ed25519 key"), "{error}");
    }
}
