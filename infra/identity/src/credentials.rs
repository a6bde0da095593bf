//! What a process is known by: a key that it made, and a certificate for it.

use std::{fmt, sync::Arc, time::Duration};

use longshore_schemas::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ED25519};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};

use crate::{Error, Named, holder, tls};

/// An ed25519 key. Its secret is shown by [`Key::pem`] alone.
pub struct Key(pub(crate) KeyPair);

impl Key {
    pub fn make() -> Result<Self, Error> {
        KeyPair::generate_for(&PKCS_ED25519).map(Self).map_err(|error| Error::Key(error.to_string()))
    }

    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem_and_sign_algo(pem, &PKCS_ED25519);
        key.map(Self).map_err(|error| Error::Key(error.to_string()))
    }

    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// Asks for a certificate, in PEM (PKCS #10): says no more than that one has the key. The name is the authority's to give.
    pub fn request(&self) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).and_then(|request| request.pem());
        request.map_err(|error| Error::Request(error.to_string()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}

/// A key with its certificate. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    resolver: Arc<SingleCertAndKey>,
    named: Named,
    from: Timestamp,
    until: Timestamp,
}

impl Credentials {
    /// The certificate must be this key's.
    pub fn new(key: &Key, certificate_pem: &str) -> Result<Self, Error> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes());
        let certificate = certificate.map_err(|error| Error::Certificate(error.to_string()))?;
        let read = holder::read(&certificate)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.0.serialize_der()));
        let certified = CertifiedKey::from_der(vec![certificate], der, &tls::provider())
            .map_err(|error| Error::Certificate(format!("it does not fit the key: {error}")))?;
        Ok(Self { resolver: Arc::new(certified.into()), named: read.named, from: read.from, until: read.until })
    }

    pub fn named(&self) -> &Named {
        &self.named
    }

    pub(crate) fn resolver(&self) -> Arc<SingleCertAndKey> {
        self.resolver.clone()
    }

    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// Half of its life is over: time for the next one.
    pub fn is_due(&self, now: Timestamp) -> bool {
        // It begins that much before it was made.
        let lived = now.since(self.from).saturating_sub(crate::SKEW);
        lived * 2 >= self.life()
    }

    pub fn is_over(&self, now: Timestamp) -> bool {
        now >= self.until
    }

    fn life(&self) -> Duration {
        self.until.since(self.from).saturating_sub(crate::SKEW)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, until {}, key hidden)", self.named, self.until)
    }
}
