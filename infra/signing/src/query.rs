//! Queries to nodes, which are records of the topic `node-queries`. Signed with the key for goals: a node tells what its services say to
//! nobody else.

use longshore_schemas::{
    codec,
    envelope::Envelope,
    events::{NodeQuery, Request},
};

use crate::{Error, Kind, TrustedKeys, open};

/// What a query is signed as.
pub const QUERY: Kind =
    Kind { payload_type: "application/vnd.longshore.node-query+avro", payload_bytes_max: 16 * 1024 };

/// The query, if one of the keys signed it.
pub fn verify(envelope: &Envelope, trusted: &TrustedKeys) -> Result<Request<NodeQuery>, Error> {
    let (payload, _) = open(&QUERY, envelope, trusted)?;
    codec::decode(&payload)
        .map_err(|error| Error::Malformed(format!("what is signed is no query that this version knows: {error}")))
}
