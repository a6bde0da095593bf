//! Records of a topic that are signed. What is signed is the record's value, byte for byte, as its sender wrote it: nobody encodes it anew on
//! its way, and the signature travels beside it.
//!
//! ```text
//! sender ─record─▶ header `signature` ─▶ topic ─▶ region ─envelope─▶ node: believed?
//! ```

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use longshore_schemas::envelope::{Envelope, Signature};

use crate::{Kind, SigningKey, envelope::signature};

/// The header of a record that holds its signature, as JSON.
pub const SIGNATURE: &str = "signature";
/// Longest header that is looked at.
const HEADER_BYTES_MAX: usize = 1024;

/// The header for the record of this value.
pub fn sign(kind: &Kind, value: &[u8], key: &SigningKey) -> Bytes {
    let signature = signature(kind, value, key);
    Bytes::from(serde_json::to_vec(&signature).expect("two texts are JSON"))
}

/// A record as it travels on; believed by nobody yet. None if it is not signed at all.
pub fn envelope(kind: &Kind, value: &[u8], header: Option<&[u8]>) -> Option<Envelope> {
    let header = header.filter(|header| header.len() <= HEADER_BYTES_MAX)?;
    let signature: Signature = serde_json::from_slice(header).ok()?;
    Some(Envelope {
        payload_type: kind.payload_type.to_owned(),
        payload: BASE64.encode(value),
        signatures: vec![signature],
    })
}
