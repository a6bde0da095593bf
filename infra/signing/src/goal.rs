//! Goals, which are records of the topic `goal-state`.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use longshore_schemas::{
    codec,
    envelope::Envelope,
    events::{GoalState, RegionalGoal, Request},
};

use crate::{Error, Kind, TrustedKeys, open};

/// What a goal is signed as. Its envelope fits into a frame between region and node.
pub const GOAL: Kind =
    Kind { payload_type: "application/vnd.longshore.goal-state+avro", payload_bytes_max: 512 * 1024 };

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
