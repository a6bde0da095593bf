//! Goals. What is signed is the record of the topic `goal-state`, byte for byte, as its processor wrote it: nobody encodes it anew on its
//! way, and the signature travels beside it.
//!
//! ```text
//! goals ─record─▶ sealed (header `signature`) ─▶ goal-state ─▶ region: believed? ─envelope─▶ node: believed? of my region? newer?
//! ```

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use longshore_schemas::{
    codec,
    envelope::{Envelope, Signature},
    events::{GoalState, RegionalGoal, Request},
};

use crate::{Error, Kind, SigningKey, TrustedKeys, envelope::signature, open};

/// What a goal is signed as. Its envelope fits into a frame between region and node.
pub const GOAL: Kind =
    Kind { payload_type: "application/vnd.longshore.goal-state+avro", payload_bytes_max: 512 * 1024 };
/// The header of a record of `goal-state` that holds its signature, as JSON.
pub const SIGNATURE: &str = "signature";
/// Longest header that is looked at.
const HEADER_BYTES_MAX: usize = 1024;

/// The header for the record of this value.
pub fn sign(value: &[u8], key: &SigningKey) -> Bytes {
    let signature = signature(&GOAL, value, key);
    Bytes::from(serde_json::to_vec(&signature).expect("two texts are JSON"))
}

/// A record of `goal-state` as it travels on; believed by nobody yet. None if it is not signed at all.
pub fn envelope(value: &[u8], header: Option<&[u8]>) -> Option<Envelope> {
    let header = header.filter(|header| header.len() <= HEADER_BYTES_MAX)?;
    let signature: Signature = serde_json::from_slice(header).ok()?;
    Some(Envelope {
        payload_type: GOAL.payload_type.to_owned(),
        payload: BASE64.encode(value),
        signatures: vec![signature],
    })
}

/// The goal, if one of the keys signed it.
pub fn verify(envelope: &Envelope, trusted: &TrustedKeys) -> Result<RegionalGoal, Error> {
    let (payload, _) = open(&GOAL, envelope, trusted)?;
    decoded(&payload)
        .map_err(|error| Error::Malformed(format!("what is signed is no goal that this version knows: {error}")))
}

/// What an envelope says, whoever says it.
pub fn read(envelope: &Envelope) -> Option<RegionalGoal> {
    decoded(&BASE64.decode(&envelope.payload).ok()?).ok()
}

fn decoded(payload: &[u8]) -> Result<RegionalGoal, codec::CodecError> {
    let GoalState::RegionalGoal(goal) = codec::decode::<Request<GoalState>>(payload)?.event;
    Ok(goal)
}
