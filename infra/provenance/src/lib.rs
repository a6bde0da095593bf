//! Provenance: who made an artifact of what, said in a form that others read too, and signed.
//!
//! ```text
//! statement (in-toto v1, SLSA provenance v1) ─JSON─▶ payload ─ed25519 over its PAE─▶ envelope (DSSE)
//! envelope ─▶ signed by a key that is trusted? ─▶ a statement? ─▶ of this artifact? ─▶ Verified
//! ```
//!
//! - The artifact's name is the BLAKE3 of its manifest, so whoever verifies an envelope and then uses only bytes that were verified
//!   against the name knows where every byte comes from.
//!
//! Everything that is read is bounded before it is decoded. Nodes link this crate: it knows no log, no bucket and no network.

mod statement;

use longshore_schemas::{ArtifactId, envelope::Envelope};
use longshore_signing::{Kind, PublicKey, TrustedKeys, open};

pub use statement::{
    BUILD_TYPE, BuildDefinition, Builder, IMPORT_TYPE, Metadata, PREDICATE_TYPE, Predicate, ResourceDescriptor,
    RunDetails, STATEMENT_TYPE, Statement, Subject, built, digest_of_command, imported,
};

/// What provenance is signed as.
pub const STATEMENT: Kind = Kind { payload_type: "application/vnd.in-toto+json", payload_bytes_max: 64 * 1024 };

/// Why an envelope is not taken for an artifact's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Envelope(#[from] longshore_signing::Error),
    #[error("what is signed is no provenance: {0}")]
    NotProvenance(String),
    #[error("the provenance is that of {found}, not of {expected}")]
    OtherArtifact { expected: ArtifactId, found: String },
}

/// What an envelope says of an artifact, and whose word it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    pub statement: Statement,
    pub key: PublicKey,
}

/// Whether a trusted key says where this artifact comes from; and what it says.
pub fn verify(envelope: &Envelope, trusted: &TrustedKeys, artifact: &ArtifactId) -> Result<Verified, Error> {
    let (payload, key) = open(&STATEMENT, envelope, trusted)?;
    let statement = Statement::from_json(&payload)?;
    let found = statement.subject.first().and_then(|subject| subject.digest.get(statement::BLAKE3));
    if found != Some(&artifact.to_string()) {
        let found = found.cloned().unwrap_or_else(|| "nothing".to_owned());
        return Err(Error::OtherArtifact { expected: *artifact, found });
    }
    Ok(Verified { statement, key })
}
