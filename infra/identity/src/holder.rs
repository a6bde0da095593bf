//! Whom a certificate names: a URI among its alternative names, and nothing else of it.

use std::{fmt, str::FromStr};

use longshore_schemas::{NodeId, RegionName, Timestamp};
use rustls::pki_types::CertificateDer;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use crate::Error;

const SCHEME: &str = "longshore://";

/// What a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    Authority,
    /// Any process of the region.
    Region,
    Node(NodeId),
}

/// A holder, and the region that it belongs to: `longshore://eu/node/i-17`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub region: RegionName,
    pub holder: Holder,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.region)?;
        match &self.holder {
            Holder::Authority => f.write_str("authority"),
            Holder::Region => f.write_str("region"),
            Holder::Node(node) => write!(f, "node/{node}"),
        }
    }
}

impl FromStr for Named {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || Error::Certificate(format!("{text:?} names nothing of Longshore"));
        let (region, holder) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(unknown)?;
        let holder = match holder.split_once('/') {
            None if holder == "authority" => Holder::Authority,
            None if holder == "region" => Holder::Region,
            Some(("node", node)) => Holder::Node(node.parse().map_err(|_| unknown())?),
            _ => return Err(unknown()),
        };
        Ok(Self { region: region.parse().map_err(|_| unknown())?, holder })
    }
}

/// What is read of a certificate; that somebody vouches for it is another matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) named: Named,
    pub(crate) public_key: Vec<u8>,
    pub(crate) from: Timestamp,
    pub(crate) until: Timestamp,
}

pub(crate) fn read(certificate: &CertificateDer<'_>) -> Result<Read, Error> {
    let unread = |error: &dyn fmt::Display| Error::Certificate(error.to_string());
    let (rest, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| unread(&error))?;
    if !rest.is_empty() {
        return Err(unread(&"something follows it"));
    }
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_millis(time.timestamp().saturating_mul(1000));
    Ok(Read {
        named: name(&parsed)?,
        public_key: parsed.public_key().subject_public_key.data.to_vec(),
        from: time(parsed.validity().not_before),
        until: time(parsed.validity().not_after),
    })
}

/// Of several names one would have to be chosen, so there must be one.
fn name(parsed: &X509Certificate<'_>) -> Result<Named, Error> {
    let names = parsed.subject_alternative_name().map_err(|error| Error::Certificate(error.to_string()))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse(),
        (None, _) => Err(Error::Certificate("it has no name of Longshore".to_owned())),
        (Some(_), Some(_)) => Err(Error::Certificate("it has several names".to_owned())),
    }
}
