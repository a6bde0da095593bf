//! Which idle packs can be had from whom.

use super::{PeerNumber, table::Place};
use crate::few::Few;

/// Idle packs that a peer has or gets, of those that go one way.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) peer: PeerNumber,
    pub(super) stripe: Option<u8>,
    packs: Few,
}

/// In the order of peers and ways; none is empty.
#[derive(Debug, Default)]
pub(super) struct Offers(Vec<Offer>);

impl Offer {
    fn key(&self) -> (PeerNumber, Option<u8>) {
        (self.peer, self.stripe)
    }

    pub(super) fn first(&self) -> Option<Place> {
        self.packs.first()
    }
}

impl Offers {
    pub(super) fn insert(&mut self, peer: PeerNumber, stripe: Option<u8>, pack: Place) {
        let place = self.find(peer, stripe).unwrap_or_else(|place| {
            self.0.insert(place, Offer { peer, stripe, packs: Few::default() });
            place
        });
        self.0[place].packs.insert(pack);
    }

    pub(super) fn remove(&mut self, peer: PeerNumber, stripe: Option<u8>, pack: Place) {
        let Ok(place) = self.find(peer, stripe) else { return };
        self.0[place].packs.remove(pack);
        if self.0[place].packs.is_empty() {
            self.0.remove(place);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Offer> {
        self.0.iter()
    }

    pub(super) fn are_of(&self, peer: PeerNumber) -> bool {
        self.0.iter().any(|offer| offer.peer == peer)
    }

    /// After packs have other places; their order is the same.
    pub(super) fn follow(&mut self, moved: &[Place]) {
        for offer in &mut self.0 {
            offer.packs.follow(moved);
        }
    }

    fn find(&self, peer: PeerNumber, stripe: Option<u8>) -> Result<usize, usize> {
        self.0.binary_search_by_key(&(peer, stripe), Offer::key)
    }
}
