//! The one who certifies.

use std::time::Duration;

use longshore_schemas::{NodeId, RegionName, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::{AUTHORITY_LIFETIME, Credentials, Error, Holder, Key, LIFETIME, Named, SKEW, Trust, tls};

/// Longest request that is looked at, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
const SERIAL_BYTES: usize = 16;

/// A region's authority, with its key.
#[derive(Debug)]
pub struct Authority {
    region: RegionName,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    /// A new authority's key and its certificate, in PEM.
    pub fn make(region: &RegionName, now: Timestamp) -> Result<(Key, String), Error> {
        let key = Key::make()?;
        let named = Named { region: region.clone(), holder: Holder::Authority };
        let mut params = params(&named, now, AUTHORITY_LIFETIME)?;
        // Two authorities of a region are not to be mistaken for each other.
        params.distinguished_name.push(DnType::OrganizationalUnitName, hex(&serial()[..4]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key.0).map_err(|error| Error::Certificate(error.to_string()))?;
        Ok((key, certificate.pem()))
    }

    /// The one of these authorities whose key this is.
    pub fn of(key: Key, trust: &Trust) -> Result<Self, Error> {
        let certificate = trust.authority_of(key.0.public_key_raw()).ok_or(Error::OtherKey)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key.0);
        let issuer = issuer.map_err(|error| Error::Certificate(error.to_string()))?;
        Ok(Self { region: trust.region().clone(), issuer })
    }

    pub fn region(&self) -> &RegionName {
        &self.region
    }

    /// Its own certificate among these authorities, in PEM, and how many others there are.
    pub(crate) fn own_of(&self, trust: &Trust) -> (String, usize) {
        trust.alone(self.issuer.key().public_key_raw())
    }

    /// A certificate in PEM for a node's request.
    pub fn certify(&self, request: &Request, node: &NodeId, now: Timestamp) -> Result<String, Error> {
        self.issue(&request.0.public_key, Holder::Node(node.clone()), now)
    }

    /// Likewise for a server that is to pass for the region, as benchmarks need it.
    #[doc(hidden)]
    pub fn certify_region(&self, request: &Request, now: Timestamp) -> Result<String, Error> {
        self.issue(&request.0.public_key, Holder::Region, now)
    }

    /// What a process of the region shows.
    pub fn own_credentials(&self, now: Timestamp) -> Result<Credentials, Error> {
        let key = Key::make()?;
        let certificate = self.issue(&key.0, Holder::Region, now)?;
        Credentials::new(&key, &certificate)
    }

    fn issue(&self, key: &impl PublicKeyData, holder: Holder, now: Timestamp) -> Result<String, Error> {
        let is_node = matches!(holder, Holder::Node(_));
        let dns_name = if is_node { tls::NODE } else { tls::REGION };
        let mut params = params(&Named { region: self.region.clone(), holder }, now, LIFETIME)?;
        let dns_name = dns_name.try_into().map_err(|error: rcgen::Error| Error::Request(error.to_string()))?;
        params.subject_alt_names.push(SanType::DnsName(dns_name));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        if is_node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        let certificate = params.signed_by(key, &self.issuer).map_err(|error| Error::Request(error.to_string()))?;
        Ok(certificate.pem())
    }
}

/// A request for a certificate, whose sender has the key that it names.
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads what [`Key::request`] wrote, or any other ed25519 request; names in it are not taken over.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        if pem.len() > REQUEST_BYTES_MAX {
            return Err(Error::Request(format!("it has more than {REQUEST_BYTES_MAX} bytes")));
        }
        let params = CertificateSigningRequestParams::from_pem(pem);
        let params = params.map_err(|error| Error::Request(error.to_string()))?;
        if params.public_key.algorithm() != &PKCS_ED25519 {
            return Err(Error::Request("its key is not an ed25519 key".to_owned()));
        }
        Ok(Self(params))
    }

    pub fn public_key(&self) -> &[u8] {
        self.0.public_key.der_bytes()
    }

    /// The public key in hexadecimal.
    pub fn key_id(&self) -> String {
        hex(self.public_key())
    }
}

fn params(named: &Named, now: Timestamp, lifetime: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    let uri = named.to_string();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, uri.as_str());
    let uri = uri.try_into().map_err(|error: rcgen::Error| Error::Request(error.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.not_before = date(Timestamp(now.millis().saturating_sub(millis(SKEW))))?;
    params.not_after = date(now + lifetime)?;
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    Ok(params)
}

fn date(at: Timestamp) -> Result<OffsetDateTime, Error> {
    OffsetDateTime::from_unix_timestamp(at.millis().div_euclid(1000))
        .map_err(|error| Error::Request(format!("the clock is off: {error}")))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Positive, as serial numbers must be.
fn serial() -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    rand::fill(&mut serial);
    serial[0] = (serial[0] & 0x3f) | 0x40;
    serial
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
