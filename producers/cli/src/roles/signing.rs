//! The keys that control nodes sign with: one for artifacts' provenance, one for goals.
//!
//! ```text
//! [provenance]                                  # [goals] likewise
//! key_file = "/etc/longshore/provenance.key"   # LONGSHORE_PROVENANCE_KEY_FILE: by default, in the folder of secrets
//! key = "-----BEGIN PRIVATE KEY-----\n…"        # or the key itself, as LONGSHORE_PROVENANCE_KEY
//! ```
//!
//! Each is an ed25519 key in PEM. `longshore secrets` and `longshore up` make them, and beside each its public half, which is for everyone:
//! `provenance.pub` for nodes and people, `goals.pub` for regions and nodes.
//! To replace one: add the new public key to the file of all who verify, beside the old one; then give the new key to the control nodes.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use longshore_service::durable;
use longshore_signing::{SigningKey, TrustedKeys};
use serde::Deserialize;

use crate::defaults::UpKeys;

/// What the environment may set.
pub(crate) const KEYS: [&str; 4] = ["provenance.key", "provenance.key_file", "goals.key", "goals.key_file"];

/// What is signed by a key.
pub(crate) struct Signed {
    /// The section of its settings.
    pub(crate) section: &'static str,
    pub(crate) what: &'static str,
    /// In the folder of secrets.
    key_file: &'static str,
    pub(crate) public_file: &'static str,
}

pub(crate) const PROVENANCE: Signed = Signed {
    section: "provenance",
    what: "artifacts' provenance",
    key_file: "provenance.key",
    public_file: "provenance.pub",
};
pub(crate) const GOALS: Signed =
    Signed { section: "goals", what: "goals", key_file: "goals.key", public_file: "goals.pub" };
pub(crate) const ALL: [&Signed; 2] = [&PROVENANCE, &GOALS];

/// Where a key is.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KeySource {
    key: Option<String>,
    key_file: Option<PathBuf>,
}

impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeySource(key hidden, file {:?})", self.key_file)
    }
}

impl KeySource {
    /// The key to sign with. It is not made here: control nodes that each had their own would be trusted by nobody.
    pub(crate) fn key(&self, of: &Signed, secrets: &Path) -> anyhow::Result<SigningKey> {
        let section = of.section;
        let file = match (&self.key, &self.key_file) {
            (Some(_), Some(_)) => bail!("give {section}.key or {section}.key_file, not both"),
            (Some(key), None) => {
                return SigningKey::from_pem(key.as_bytes()).map_err(|error| anyhow!("{section}.key: {error}"));
            }
            (None, Some(file)) => file.clone(),
            (None, None) => secrets.join(of.key_file),
        };
        let pem = read(&file, of)?;
        SigningKey::from_pem(&pem).map_err(|error| anyhow!("{}: {error}", file.display()))
    }
}

/// The public keys of the folder of secrets.
pub(crate) fn trusted(of: &Signed, secrets: &Path) -> anyhow::Result<TrustedKeys> {
    let file = secrets.join(of.public_file);
    let pem = read(&file, of)?;
    TrustedKeys::from_pem(&pem).map_err(|error| anyhow!("{}: {error}", file.display()))
}

fn read(file: &Path, of: &Signed) -> anyhow::Result<Vec<u8>> {
    let missing = || {
        let (file, what) = (file.display(), of.what);
        anyhow!("there is no {file}, for the signatures of {what}: `longshore secrets` makes it, where it is missing")
    };
    durable::read(file)?.ok_or_else(missing)
}

/// Where the public keys are.
pub(crate) fn public_files(secrets: &Path) -> UpKeys {
    UpKeys { goals: secrets.join(GOALS.public_file), provenance: secrets.join(PROVENANCE.public_file) }
}

/// Makes the key and its public half in the folder of secrets, unless they are there.
pub(crate) fn make(of: &Signed, secrets: &Path) -> anyhow::Result<()> {
    let (file, public) = (secrets.join(of.key_file), secrets.join(of.public_file));
    if durable::read(&file)?.is_none() {
        let mut seed = [0; 32];
        rand::fill(&mut seed);
        durable::write(&file, SigningKey::pem_of_seed(&seed).as_bytes(), durable::PRIVATE_MODE)?;
    }
    // There may be further keys in it, of earlier and later times.
    if durable::read(&public)?.is_none() {
        let key = KeySource::default().key(of, secrets)?;
        durable::write(&public, key.public().pem().as_bytes(), durable::SHARED_MODE)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_found_in_its_three_places() {
        let folder = tempfile::tempdir().expect("a folder");
        let key_of = |source: &KeySource| source.key(&PROVENANCE, folder.path());
        let missing = key_of(&KeySource::default()).expect_err("not made").to_string();
        assert!(missing.contains("provenance.key") && missing.contains("longshore secrets"), "{missing}");
        for signed in ALL {
            make(signed, folder.path()).expect("made");
        }
        let key = key_of(&KeySource::default()).expect("read");
        make(&PROVENANCE, folder.path()).expect("there");
        assert_eq!(key_of(&KeySource::default()).expect("read").public(), key.public());
        assert_eq!(trusted(&PROVENANCE, folder.path()).expect("a key").keys(), [*key.public()]);
        assert_ne!(trusted(&GOALS, folder.path()).expect("a key").keys(), [*key.public()]);

        let pem = SigningKey::pem_of_seed(&[1; 32]);
        let other = folder.path().join("other");
        std::fs::write(&other, &pem).expect("written");
        let of_file = KeySource { key_file: Some(other.clone()), key: None };
        let of_text = KeySource { key: Some(pem.clone()), key_file: None };
        assert_eq!(key_of(&of_file).expect("read").public(), key_of(&of_text).expect("read").public());
        let both = key_of(&KeySource { key: Some(pem), key_file: Some(other.clone()) });
        assert!(both.expect_err("two").to_string().contains("not both"));
        std::fs::write(&other, "no key").expect("written");
        let error = key_of(&of_file).expect_err("no key").to_string();
        assert!(error.contains("other: it is no ed25519 key"), "{error}");
    }
}
