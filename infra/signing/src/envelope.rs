//! The envelope: DSSE v1, with the bytes that are signed as its specification has them.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD as BASE64, URL_SAFE as BASE64_URL},
};
use longshore_schemas::envelope::{Envelope, Signature};

use crate::{Error, PublicKey, SigningKey, TrustedKeys};

/// What a payload is, which is part of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    pub payload_type: &'static str,
    pub payload_bytes_max: usize,
}

impl Kind {
    /// Largest envelope, as JSON.
    pub const fn envelope_bytes_max(&self) -> usize {
        // Base64, and room for signatures.
        self.payload_bytes_max * 3 / 2 + 16 * 1024
    }
}

/// Signatures of one envelope that are looked at.
const SIGNATURES_MAX: usize = 16;
const SIGNATURE_TEXT_MAX: usize = 128;

/// Reads an envelope; nothing of it is verified.
pub fn from_json(kind: &Kind, json: &[u8]) -> Result<Envelope, Error> {
    let limit = kind.envelope_bytes_max();
    if json.len() > limit {
        return Err(Error::TooLarge { bytes: json.len(), limit });
    }
    serde_json::from_slice(json).map_err(|error| Error::Malformed(error.to_string()))
}

/// What is signed of a payload: its type and itself, each with its length, so that neither can pass for a part of the other.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// The payload in an envelope.
pub fn sign(kind: &Kind, payload: &[u8], key: &SigningKey) -> Envelope {
    Envelope {
        payload_type: kind.payload_type.to_owned(),
        payload: BASE64.encode(payload),
        signatures: vec![signature(kind, payload, key)],
    }
}

pub(crate) fn signature(kind: &Kind, payload: &[u8], key: &SigningKey) -> Signature {
    let sig = BASE64.encode(key.sign(&pae(kind.payload_type, payload)));
    Signature { keyid: key.public().id(), sig }
}

/// The payload, if one of the keys signed it as this kind, and which.
pub fn open(kind: &Kind, envelope: &Envelope, trusted: &TrustedKeys) -> Result<(Vec<u8>, PublicKey), Error> {
    let Envelope { payload_type, payload, signatures } = envelope;
    if payload_type != kind.payload_type {
        let found = payload_type.chars().take(100).collect();
        return Err(Error::WrongType { found, expected: kind.payload_type });
    }
    let limit = kind.envelope_bytes_max();
    if payload.len() > limit {
        return Err(Error::TooLarge { bytes: payload.len(), limit });
    }
    if !(1..=SIGNATURES_MAX).contains(&signatures.len()) {
        return Err(Error::Malformed(format!("it has {} signatures, not 1 to {SIGNATURES_MAX}", signatures.len())));
    }
    let payload = decoded(payload).ok_or_else(|| Error::Malformed("its payload is not base64".to_owned()))?;
    if payload.len() > kind.payload_bytes_max {
        return Err(Error::TooLarge { bytes: payload.len(), limit: kind.payload_bytes_max });
    }
    let message = pae(payload_type, &payload);
    let fits = |signature: &&Signature| signature.sig.len() <= SIGNATURE_TEXT_MAX;
    let mut signers = signatures.iter().filter(fits).filter_map(|signature| {
        let signature = decoded(&signature.sig)?;
        let of = |key: &&PublicKey| key.is_signed(&message, &signature);
        trusted.keys().iter().find(of).copied()
    });
    match signers.next() {
        Some(key) => Ok((payload, key)),
        None => Err(Error::NotTrusted { trusted: trusted.keys().len(), named: named(signatures) }),
    }
}

/// For people: the keys that it is said to be signed by.
fn named(signatures: &[Signature]) -> String {
    let names: Vec<String> = signatures.iter().map(|signature| signature.keyid.chars().take(12).collect()).collect();
    names.join(", ")
}

/// Either alphabet, as the specification allows.
fn decoded(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).or_else(|_| BASE64_URL.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_as_the_specification_says() {
        // The example of DSSE's protocol.md.
        let signed = pae("http://example.com/HelloWorld", b"hello world");
        assert_eq!(signed, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
        assert_eq!(pae("", b""), b"DSSEv1 0  0 ");
    }
}
