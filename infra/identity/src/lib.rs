//! Who a machine is: certificates of the region's own authority, which regions, nodes and peers show each other over TLS 1.3.
//!
//! ```text
//!  authority (of one region, a file) ──certifies──▶ the region's processes     longshore://eu/region
//!                                    └─certifies──▶ its nodes, for a day       longshore://eu/node/i-17
//!
//!  node ──TLS: is it the region? is it a node, or somebody who wants to be one?── region
//!  node ──TLS: is it the peer that was meant? is it a node of this region?────── node
//! ```
//!
//! - [`Authority`] certifies. Its key is in the region's processes and nowhere else.
//! - [`Trust`]: which authorities are believed, and which nodes are not any more, whatever they show.
//! - [`Key`] and [`Credentials`]: what one is known by oneself. Keys never leave the machine that made them.
//! - [`Tls`] holds all of it for a process, and makes connections; what it holds is replaced while it runs, without a gap.
//! - [`files`]: the authority of a region as files.
//!
//! An authority is of one region, so a certificate of another region is worth nothing. Several authorities may be believed at a
//! time, so that one follows another. Nothing is decided here: who may become a node is the region's question.

mod authority;
mod credentials;
pub mod files;
mod holder;
#[doc(hidden)]
pub mod testing;
mod tls;
mod trust;

use std::time::Duration;

pub use authority::{Authority, Request};
pub use credentials::{Credentials, Key};
pub use holder::{Holder, Named};
pub use tls::{HANDSHAKES_MAX, Handshaken, Peer, PeerStream, Stream, Tls, is_refusal, refused_by};
pub use trust::{Distrust, REVOKED_MAX, Trust};

/// How long a certificate of a node or a region's process is valid. It is renewed after half of that.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// By so much clocks may differ.
pub const SKEW: Duration = Duration::from_secs(2 * 60 * 60);
/// A node that was away until its certificate ran out gets a new one for it for so long, if it has its key still.
pub const RESTORABLE_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long an authority is valid.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no certificate in PEM can be read: {0}")]
    Certificate(String),
    #[error("the certificate is that of {found}, where one of {expected} belongs")]
    Holder { found: String, expected: String },
    #[error("the authorities are of several regions, {0} and {1}")]
    Regions(String, String),
    #[error("it names no authority")]
    NoAuthority,
    #[error("it has {0} authorities; {max} are possible", max = trust::AUTHORITIES_MAX)]
    TooMany(usize),
    #[error("no ed25519 key in PEM can be read: {0}")]
    Key(String),
    #[error("the key belongs to none of the authorities")]
    OtherKey,
    #[error("the request for a certificate cannot be taken: {0}")]
    Request(String),
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}
