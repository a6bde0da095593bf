//! What is signed, as it travels: an envelope of signatures around a payload, as [DSSE] has it. `infra/signing` makes and opens them;
//! here is only their shape.
//!
//! [DSSE]: https://github.com/secure-systems-lab/dsse

use serde::{Deserialize, Serialize};

/// Provenance of an artifact (`GET /v1/artifacts/{artifact}/provenance`), or a goal. Worth nothing until it is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    pub payload_type: String,
    /// Base64.
    pub payload: String,
    pub signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Says which key it may be; not signed, and not relied on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub keyid: String,
    /// Base64.
    pub sig: String,
}
