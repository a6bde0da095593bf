//! Whose certificates are believed.

use std::{collections::BTreeSet, fmt, sync::Arc};

use longshore_schemas::{NodeId, RegionName, Timestamp};
use rustls::{
    CertificateError, RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};

use crate::{Error, Holder, RESTORABLE_FOR, holder, tls};

/// Authorities that are believed at a time. Two are enough to replace one by the other.
pub(crate) const AUTHORITIES_MAX: usize = 8;
/// Nodes that are revoked at a time.
pub const REVOKED_MAX: usize = 10_000;

const PEM_END: &str = "-----END CERTIFICATE-----";

/// Why a certificate, though whole, is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    #[error("its certificate is not believed: {0}")]
    Unverified(String),
    #[error("its certificate ran out at {0}")]
    Over(Timestamp),
    #[error("node {0} is revoked")]
    Revoked(NodeId),
    #[error("it is {found}, not {expected}")]
    Other { found: String, expected: String },
}

/// The authorities of one region, at least one, and those of its nodes that are revoked. Cheap to clone.
#[derive(Clone)]
pub struct Trust(Arc<Inner>);

struct Inner {
    region: RegionName,
    pem: String,
    authorities: Vec<(Vec<u8>, CertificateDer<'static>)>,
    roots: Arc<RootCertStore>,
    verifier: Arc<dyn ClientCertVerifier>,
    revoked: BTreeSet<NodeId>,
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.pem == other.0.pem && self.0.revoked == other.0.revoked)
    }
}

impl Trust {
    /// All authorities of a text in PEM, one after the other.
    pub fn new(pem: &str, revoked: BTreeSet<NodeId>) -> Result<Self, Error> {
        let (mut authorities, mut roots) = (Vec::new(), RootCertStore::empty());
        let mut region: Option<RegionName> = None;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| Error::Certificate(error.to_string()))?.into_owned();
            let read = holder::read(&certificate)?;
            if read.named.holder != Holder::Authority {
                return Err(Error::Holder { found: read.named.to_string(), expected: "an authority".to_owned() });
            }
            let first = region.get_or_insert_with(|| read.named.region.clone());
            if *first != read.named.region {
                return Err(Error::Regions(first.to_string(), read.named.region.to_string()));
            }
            if authorities.iter().any(|(_, known)| *known == certificate) {
                continue;
            }
            roots.add(certificate.clone()).map_err(|error| Error::Certificate(error.to_string()))?;
            authorities.push((read.public_key, certificate));
        }
        let region = region.ok_or(Error::NoAuthority)?;
        if authorities.len() > AUTHORITIES_MAX {
            return Err(Error::TooMany(authorities.len()));
        }
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), tls::provider().into()).build();
        let verifier = verifier.map_err(|error| Error::Tls(error.to_string()))?;
        Ok(Self(Arc::new(Inner { region, pem: pem.to_owned(), authorities, roots, verifier, revoked })))
    }

    pub fn region(&self) -> &RegionName {
        &self.0.region
    }

    /// The authorities, in PEM.
    pub fn pem(&self) -> &str {
        &self.0.pem
    }

    pub fn revoked(&self) -> &BTreeSet<NodeId> {
        &self.0.revoked
    }

    pub fn is_revoked(&self, node: &NodeId) -> bool {
        self.0.revoked.contains(node)
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.0.roots.clone()
    }

    /// This one's certificate in PEM, and how many others there are.
    pub(crate) fn alone(&self, public_key: &[u8]) -> (String, usize) {
        let is_own = |section: &&str| {
            let certificate = CertificateDer::from_pem_slice(section.as_bytes());
            let read = certificate.ok().and_then(|certificate| holder::read(&certificate).ok());
            read.is_some_and(|read| read.public_key == public_key)
        };
        let own = self.0.pem.split_inclusive(PEM_END).filter(is_own).map(|section| format!("{}\n", section.trim()));
        (own.collect(), self.0.authorities.iter().filter(|(key, _)| key != public_key).count())
    }

    pub(crate) fn authority_of(&self, public_key: &[u8]) -> Option<&CertificateDer<'static>> {
        let found = self.0.authorities.iter().find(|(key, _)| key == public_key);
        found.map(|(_, certificate)| certificate)
    }

    /// Which node's certificate this was when it ran out, not too long ago, in PEM, if it is for this public key.
    pub fn former_node(&self, pem: &str, public_key: &[u8], now: Timestamp) -> Result<NodeId, Distrust> {
        let unverified = |error: &dyn fmt::Display| Distrust::Unverified(error.to_string());
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unverified(&error))?;
        let read = holder::read(&certificate).map_err(|error| unverified(&error))?;
        if read.public_key != public_key {
            return Err(unverified(&"it is another key's"));
        }
        if now.since(read.until) > RESTORABLE_FOR {
            return Err(Distrust::Over(read.until));
        }
        let last = Timestamp(read.until.millis() - 1);
        self.node(&certificate, now.min(last))
    }

    /// Which node this certificate is of, at that time.
    pub fn node(&self, certificate: &CertificateDer<'_>, at: Timestamp) -> Result<NodeId, Distrust> {
        let unverified = |error: &dyn fmt::Display| Distrust::Unverified(error.to_string());
        let read = holder::read(certificate).map_err(|error| unverified(&error))?;
        let since_epoch = at.since(Timestamp(0));
        let verified = self.0.verifier.verify_client_cert(certificate, &[], UnixTime::since_unix_epoch(since_epoch));
        match verified {
            Ok(_) => {}
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => return Err(Distrust::Over(read.until)),
            Err(error) => return Err(unverified(&error)),
        }
        match read.named.holder {
            Holder::Node(node) if read.named.region == self.0.region => {
                if self.is_revoked(&node) {
                    Err(Distrust::Revoked(node))
                } else {
                    Ok(node)
                }
            }
            _ => {
                let expected = format!("a node of {}", self.0.region);
                Err(Distrust::Other { found: read.named.to_string(), expected })
            }
        }
    }
}
