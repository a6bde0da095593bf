//! The policy of the swarm, without I/O: who gives which pack to whom, and who may go to the bucket.
//!
//! ```text
//!            region                                     node
//!   Tracker::on(event, now) ──Sources──▶ Fetch::on(event, now) ──▶ FromPeer, FromBucket
//!         ▲                                   │
//!         └──── have, wanted, ticket done ────┘
//! ```
//!
//! - [`Tracker`] knows who has and who wants what in one region. It plans from whom each node gets which packs, introduces whom that does not
//!   help to some who have them, and lends tickets for the bucket: one at a time for a pack that nobody has.
//! - [`Fetch`] belongs to one node and one artifact. It chooses the next packs, in an order that all nodes have, and where to get them.
//! - [`Caps`] says how much of its link a node gives, and [`Rate`] holds it to that.
//!
//! Both are deterministic: the same events give the same actions. They know neither clock nor randomness nor sockets: the
//! time comes with each event, as the time since any fixed moment, and [`Tracker::next_wake`] and [`Fetch::next_wake`] say
//! when a `Tick` is due. Losing the tracker loses no byte: nodes announce and wish again, and what they know stays valid.

mod bits;
mod caps;
pub mod fetch;
mod few;
mod rate;
pub mod tracker;

pub use caps::{Caps, Malformed};
pub use fetch::Fetch;
pub use rate::Rate;
pub use tracker::Tracker;

/// Time since a fixed moment that the caller chose; it never goes back.
pub type Time = std::time::Duration;

/// A well mixed number of two: equal scores would make all nodes choose alike.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut x = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A pack's name is a hash already: its first bytes are as random as any.
pub(crate) fn pack_number(pack: &longshore_schemas::PackId) -> u64 {
    u64::from_le_bytes(*pack.as_bytes().first_chunk().expect("a pack's id has 32 bytes"))
}

/// FNV-1a, mixed: names that differ in one digit must not be neighbours.
pub(crate) fn name_number(name: &str) -> u64 {
    let fnv = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    mix(fnv, 1)
}
