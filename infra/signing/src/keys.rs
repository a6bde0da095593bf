//! Ed25519 keys as PEM files: PKCS #8 for the secret one (`openssl genpkey -algorithm ed25519`), SubjectPublicKeyInfo for public ones
//! (`openssl pkey -pubout`).

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, pem::PemObject};

const KEY_BYTES: usize = 32;
/// What stands before the key's bytes in PKCS #8 (version 1) and in a SubjectPublicKeyInfo.
const SECRET_PREFIX: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
const PUBLIC_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
/// Keys that are trusted at a time. Two are enough to replace one by the other.
const TRUSTED_MAX: usize = 16;
/// Of a key's name, so much is shown.
const SHORT_CHARS: usize = 12;

/// Why a text holds no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it is no ed25519 key in PEM (PKCS #8): make one with `openssl genpkey -algorithm ed25519`")]
    Secret,
    #[error("it has no ed25519 public key in PEM: make it with `openssl pkey -in KEY -pubout`")]
    Public,
    #[error("it has {0} public keys; {TRUSTED_MAX} are possible")]
    TooMany(usize),
}

/// Signs. Its secret is never shown.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// The key of this seed, which must be random and secret.
    pub fn from_seed(seed: &[u8; KEY_BYTES]) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed");
        Self::of(pair)
    }

    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::Secret)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).map_err(|_| KeyError::Secret)?;
        Ok(Self::of(pair))
    }

    /// The key of this seed as a file's text.
    pub fn pem_of_seed(seed: &[u8; KEY_BYTES]) -> String {
        pem("PRIVATE KEY", &SECRET_PREFIX, seed)
    }

    fn of(pair: Ed25519KeyPair) -> Self {
        let public: [u8; KEY_BYTES] = pair.public_key().as_ref().try_into().expect("an ed25519 key has 32 bytes");
        Self { pair, public: PublicKey(public) }
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, its secret hidden)", self.public)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

impl PublicKey {
    /// What signatures name it by: the BLAKE3 of its bytes.
    pub fn id(&self) -> String {
        blake3::hash(&self.0).to_hex().to_string()
    }

    pub fn pem(&self) -> String {
        pem("PUBLIC KEY", &PUBLIC_PREFIX, &self.0)
    }

    pub(crate) fn is_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

/// Enough of its name to tell it from others.
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id()[..SHORT_CHARS])
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Whose word is believed: any of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// All public keys of a text, one after the other; at least one.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let key = |der: SubjectPublicKeyInfoDer<'_>| {
            let key = der.as_ref().strip_prefix(&PUBLIC_PREFIX)?;
            key.try_into().ok().map(PublicKey)
        };
        let mut keys = Vec::new();
        for der in SubjectPublicKeyInfoDer::pem_slice_iter(pem) {
            keys.push(der.ok().and_then(key).ok_or(KeyError::Public)?);
        }
        match keys.len() {
            0 => Err(KeyError::Public),
            count if count > TRUSTED_MAX => Err(KeyError::TooMany(count)),
            _ => Ok(Self(keys)),
        }
    }

    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }
}

impl From<PublicKey> for TrustedKeys {
    fn from(key: PublicKey) -> Self {
        Self(vec![key])
    }
}

fn pem(label: &str, prefix: &[u8], key: &[u8; KEY_BYTES]) -> String {
    let der = BASE64.encode([prefix, &key[..]].concat());
    format!("-----BEGIN {label}-----\n{der}\n-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `openssl genpkey -algorithm ed25519` writes it, of the bytes 0, 1, 2 …
    const SECRET: &str = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n\
        -----END PRIVATE KEY-----\n";

    #[test]
    fn keys_are_files_that_openssl_knows() {
        let seed: [u8; KEY_BYTES] = std::array::from_fn(|byte| byte as u8);
        assert_eq!(SigningKey::pem_of_seed(&seed), SECRET);
        let key = SigningKey::from_pem(SECRET.as_bytes()).expect("a key");
        assert_eq!(key.public(), SigningKey::from_seed(&seed).public());
        let trusted = TrustedKeys::from_pem(key.public().pem().as_bytes()).expect("a key");
        assert_eq!(trusted.keys(), [*key.public()]);
        assert!(!format!("{key:?}").contains("AAECAw"), "the secret is not shown");
    }

    #[test]
    fn a_file_may_hold_several_public_keys() {
        let pem = |seed| SigningKey::from_seed(&[seed; KEY_BYTES]).public().pem();
        let two = TrustedKeys::from_pem(format!("{}\n# the next one\n{}", pem(1), pem(2)).as_bytes()).expect("keys");
        assert_eq!(two.keys().len(), 2);
        let many = pem(1).repeat(TRUSTED_MAX + 1);
        assert_eq!(TrustedKeys::from_pem(many.as_bytes()), Err(KeyError::TooMany(TRUSTED_MAX + 1)));
    }

    #[test]
    fn what_is_no_key_is_an_error_that_says_how_to_make_one() {
        let public = SigningKey::from_seed(&[1; KEY_BYTES]).public().pem();
        for text in ["", "x", &public, &SECRET.replace("MC4C", "MC4D"), &SECRET[..60]] {
            let error = SigningKey::from_pem(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains("openssl genpkey"), "{error}");
        }
        for text in ["", "x", SECRET, &public.replace("MCow", "MCox"), &public[..50]] {
            let error = TrustedKeys::from_pem(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains("-pubout"), "{error}");
        }
    }
}
