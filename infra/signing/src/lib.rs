//! Who said something, for those who cannot ask: ed25519 signatures around what is to be believed, as DSSE has them.
//!
//! ```text
//! payload ─ed25519 over its kind, lengths and bytes─▶ envelope ─▶ signed by a key that is trusted, as this kind? ─▶ payload
//! ```
//!
//! - [`SigningKey`] is the control nodes' own.
//! - [`TrustedKeys`] are those that a verifier believes. Several of them let a key be replaced by another: trust both, sign with the new
//!   one, and stop trusting the old one when nothing that matters is signed by it.
//! - A [`Kind`] is part of what is signed: what was signed as one kind never passes as another, even by the same key.
//! - [`record`]: signatures beside the records of a topic: [`goal`]s, what regions are to run, and [`query`]s to single nodes.
//!
//! Everything that is read is bounded before it is decoded. Nodes link this crate: it knows no log, no bucket and no network.

mod envelope;
pub mod goal;
mod keys;
pub mod query;
pub mod record;

pub use envelope::{Kind, from_json, open, pae, sign};
pub use keys::{KeyError, PublicKey, SigningKey, TrustedKeys};

/// Why an envelope is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the envelope has {bytes} bytes; {limit} are possible")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the envelope cannot be read: {0}")]
    Malformed(String),
    #[error("the envelope holds {found:?}, not {expected:?}")]
    WrongType { found: String, expected: &'static str },
    #[error("the envelope is signed by none of the {trusted} keys that are trusted (it names {named})")]
    NotTrusted { trusted: usize, named: String },
}
