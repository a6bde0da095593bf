//! The packs that a node lacks, in everybody's order: a pack's place here is its turn.

use longshore_schemas::{PackId, stream::Ticket};

use super::{PeerNumber, WantedPack};
use crate::{Time, pack_number};

pub(super) type Place = usize;

/// See the module. What came keeps its place until more is wanted.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Of each pack, to be searched.
    numbers: Vec<u64>,
    packs: Vec<Missing>,
    missing: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flight {
    Peer(PeerNumber),
    Bucket,
}

#[derive(Debug)]
pub(super) struct Missing {
    pub(super) pack: PackId,
    pub(super) bytes: u64,
    pub(super) sources: Vec<PeerNumber>,
    /// The one of them that the plan has, and which way the pack goes.
    pub(super) planned: Option<PeerNumber>,
    pub(super) stripe: Option<u8>,
    pub(super) in_flight: Option<Flight>,
    pub(super) ticket: Option<Box<Ticket>>,
    pub(super) asked_at: Option<Time>,
    /// Its place in `unsourced`.
    pub(super) ask_at: Option<Time>,
    /// Some of it came.
    pub(super) begun: bool,
    /// Whom it was asked for does not help: it is asked for elsewhere as soon as somebody else is known.
    pub(super) complained: bool,
    /// The region knows that others can have it from here.
    pub(super) announced: bool,
    /// It is here.
    came: bool,
}

impl Missing {
    fn new(WantedPack { pack, bytes }: WantedPack) -> Self {
        Self {
            pack,
            bytes,
            sources: Vec::new(),
            planned: None,
            stripe: None,
            in_flight: None,
            ticket: None,
            asked_at: None,
            ask_at: None,
            begun: false,
            complained: false,
            announced: false,
            came: false,
        }
    }

    fn turn(&self) -> (u64, PackId) {
        (pack_number(&self.pack), self.pack)
    }
}

impl std::ops::Index<Place> for Table {
    type Output = Missing;

    fn index(&self, place: Place) -> &Missing {
        &self.packs[place]
    }
}

impl std::ops::IndexMut<Place> for Table {
    fn index_mut(&mut self, place: Place) -> &mut Missing {
        &mut self.packs[place]
    }
}

impl Table {
    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    /// The place of a pack that is missing.
    pub(super) fn find(&self, pack: &PackId) -> Option<Place> {
        self.place(pack).filter(|place| !self.packs[*place].came)
    }

    pub(super) fn has_come(&self, pack: &PackId) -> bool {
        self.place(pack).is_some_and(|place| self.packs[place].came)
    }

    fn place(&self, pack: &PackId) -> Option<Place> {
        let number = pack_number(pack);
        let first = self.numbers.partition_point(|known| *known < number);
        let alike = self.numbers[first..].iter().take_while(|known| **known == number).count();
        (first..first + alike).find(|place| self.packs[*place].pack == *pack)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Place, &Missing)> {
        self.packs.iter().enumerate().filter(|(_, missing)| !missing.came)
    }

    /// The places of all, in the order of their names.
    pub(super) fn by_name(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.iter().map(|(place, _)| place).collect();
        places.sort_unstable_by_key(|place| self.packs[*place].pack);
        places
    }

    /// Adds those that are not in it. The answer has the new place of each that was missing, by its place before.
    pub(super) fn add(&mut self, wanted: &[WantedPack]) -> Vec<Place> {
        let fresh = wanted.iter().filter(|wanted| self.find(&wanted.pack).is_none());
        let fresh: Vec<Missing> = fresh.map(|wanted| Missing::new(*wanted)).collect();
        let mut moved = vec![Place::MAX; self.packs.len()];
        let known = std::mem::take(&mut self.packs).into_iter().enumerate().filter(|(_, missing)| !missing.came);
        let known = known.map(|(place, missing)| (Some(place), missing));
        let mut all: Vec<_> = known.chain(fresh.into_iter().map(|missing| (None, missing))).collect();
        all.sort_by_key(|(_, missing)| missing.turn());
        // One that was named twice.
        all.dedup_by(|one, before| one.1.pack == before.1.pack);
        self.packs.reserve_exact(all.len());
        for (place, (before, missing)) in all.into_iter().enumerate() {
            if let Some(before) = before {
                moved[before] = place;
            }
            self.packs.push(missing);
        }
        self.numbers = self.packs.iter().map(|missing| pack_number(&missing.pack)).collect();
        self.missing = self.packs.len();
        moved
    }

    /// It came. What was known of it.
    pub(super) fn take(&mut self, place: Place) -> Missing {
        let Missing { pack, bytes, .. } = self.packs[place];
        self.missing -= 1;
        let came = Missing { came: true, ..Missing::new(WantedPack { pack, bytes }) };
        std::mem::replace(&mut self.packs[place], came)
    }
}
