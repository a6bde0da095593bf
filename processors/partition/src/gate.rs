//! The gate: which requests a leader believes, and the seal on those that it writes for others.

use longshore_log::{Record, StoredRecord};
use longshore_schemas::{
    auth::{AUTH, KnownKeys, RequestKey, Signed, Speaker, Untrusted},
    events::ReportOrder,
    topics,
};

/// Stands before `decide`, and after it.
pub trait Gate: Send + Sync + 'static {
    /// Whether the record was sent by whom `speaker` names.
    fn check(&self, speaker: Speaker<'_>, report: Option<&ReportOrder>, record: &StoredRecord)
    -> Result<(), Untrusted>;

    /// A record for another processor, or for the regions, with this one's word on it.
    fn seal(&self, topic: &str, record: Record) -> Record;
}

/// The gate of a control node: the key that it signs with, and all that it believes.
#[derive(Debug, Clone)]
pub struct Keyring {
    own: RequestKey,
    known: KnownKeys,
}

impl Keyring {
    /// `known` has the keys of the control nodes and of every region, the present ones and those that go.
    pub fn new(own: RequestKey, known: KnownKeys) -> Self {
        Self { own, known }
    }
}

impl Gate for Keyring {
    fn check(
        &self,
        speaker: Speaker<'_>,
        report: Option<&ReportOrder>,
        record: &StoredRecord,
    ) -> Result<(), Untrusted> {
        let StoredRecord { source, record, .. } = record;
        let value = record.value.as_deref().unwrap_or_default();
        let what = Signed { topic: &source.topic, key: &record.key, value };
        self.known.check(speaker, report, record.headers_named(AUTH), what)
    }

    fn seal(&self, topic: &str, record: Record) -> Record {
        // Goals are for regions and nodes to read, which hold no key of the control nodes: whoever writes them signs them otherwise.
        if topic == topics::GOAL_STATE.name { record } else { seal(&self.own, topic, record) }
    }
}

/// The record with this sender's word on it.
pub fn seal(key: &RequestKey, topic: &str, record: Record) -> Record {
    let value = record.value.as_deref().unwrap_or_default();
    let auth = key.sign(Signed { topic, key: &record.key, value });
    record.with_header(AUTH, auth)
}
