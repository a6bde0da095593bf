//! What people ask of single nodes. A query goes from the API to the node's region and from there to the node, and its answer
//! comes back the same way. Neither changes any state, and both may be lost: who asks waits for some seconds, and asks again.

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};

use super::events;
use crate::{NodeId, RegionName, RequestId, ServiceName, auth::Speaker};

/// Of a service's log at most this much is read at once, in bytes: what it is as text fits into a frame.
pub const LOG_TAIL_BYTES_MAX: u32 = 128 * 1024;

events! {
    /// Queries, each by the id of its request. Key: region.
    NodeQuery on NODE_QUERIES by |e| {
        LogWanted => e.region,
    }
}

events! {
    /// Answers. Key: the query.
    NodeAnswer on NODE_ANSWERS by |e| {
        LogRead => e.query,
        NotAnswered => e.query,
    } spoken {
        LogRead => Speaker::Region(&e.region),
        NotAnswered => Speaker::Region(&e.region),
    }
}

/// The end of a service's log, please.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct LogWanted {
    pub region: RegionName,
    pub node: NodeId,
    pub service: ServiceName,
    /// At most [`LOG_TAIL_BYTES_MAX`].
    pub bytes: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct LogRead {
    pub query: RequestId,
    pub region: RegionName,
    /// Whole lines, the last ones.
    pub text: String,
}

/// The node or its region cannot answer, and says why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, AvroSchema)]
#[avro(namespace = "longshore")]
pub struct NotAnswered {
    pub query: RequestId,
    pub region: RegionName,
    /// For people.
    pub reason: String,
}
