//! Packs that builds which still run have uploaded and that the region has not copied yet. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound::{Excluded, Unbounded},
};

use longshore_schemas::{
    JobId, PackId,
    events::{PacksUploaded, UploadedPack},
};

use crate::turns::Source;

/// Attempts take turns, one pack each.
#[derive(Debug)]
pub struct Hinted {
    packs_max: usize,
    attempts: BTreeMap<(JobId, u32), VecDeque<UploadedPack>>,
    /// Every pack of them, so that each waits once.
    packs: BTreeSet<PackId>,
    last: Option<(JobId, u32)>,
}

impl Hinted {
    pub fn new(packs_max: usize) -> Self {
        let (attempts, packs) = Default::default();
        Self { packs_max, attempts, packs, last: None }
    }

    /// Whether another hint may be taken in: until there is room, the log keeps them.
    pub fn has_room(&self) -> bool {
        self.packs.len() < self.packs_max
    }

    pub fn take_in(&mut self, hint: PacksUploaded, is_mine: impl Fn(&PackId) -> bool) {
        let PacksUploaded { job, attempt, packs } = hint;
        for pack in packs {
            if is_mine(&pack.pack) && self.packs.insert(pack.pack) {
                self.attempts.entry((job.clone(), attempt)).or_default().push_back(pack);
            }
        }
    }

    /// It could not be copied, and is tried again after the others of its attempt.
    pub fn put_back(&mut self, source: Source, pack: UploadedPack) {
        if let Source::Attempt(job, attempt) = source
            && self.packs.insert(pack.pack)
        {
            self.attempts.entry((job, attempt)).or_default().push_back(pack);
        }
    }

    /// The next to copy, of the attempt after the one that was last.
    pub fn take_next(&mut self) -> Option<(Source, UploadedPack)> {
        let after = self.last.as_ref().and_then(|last| self.attempts.range((Excluded(last), Unbounded)).next());
        let of = after.or_else(|| self.attempts.first_key_value()).map(|(of, _)| of.clone())?;
        let waiting = self.attempts.get_mut(&of)?;
        let pack = waiting.pop_front()?;
        if waiting.is_empty() {
            self.attempts.remove(&of);
        }
        self.packs.remove(&pack.pack);
        self.last = Some(of.clone());
        Some((Source::Attempt(of.0, of.1), pack))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(job: &str, packs: &[u8]) -> PacksUploaded {
        let packs = packs.iter().map(|pack| UploadedPack { pack: PackId::of(&[*pack]), bytes: u64::from(*pack) });
        PacksUploaded { job: job.parse().expect("valid"), attempt: 1, packs: packs.collect() }
    }

    #[test]
    fn attempts_take_turns_each_pack_waits_once_and_there_is_a_bound() {
        let mut hinted = Hinted::new(6);
        // What is hinted, whether there is room then, and the sizes of what comes out.
        let table: [(&str, &[u8], bool, &[u64]); 6] = [
            ("q-1", &[1, 2, 3], true, &[1]),
            ("q-2", &[4, 5, 2], true, &[4, 2]),
            ("q-3", &[6], true, &[5, 6, 3]),
            ("q-1", &[1, 1], true, &[1]),
            ("q-1", &[1, 2, 3, 4, 5, 6, 7], false, &[1, 2, 3, 4, 5, 6, 7]),
            ("q-2", &[], true, &[]),
        ];
        for (job, packs, has_room, out) in table {
            hinted.take_in(hint(job, packs), |_| true);
            assert_eq!(hinted.has_room(), has_room, "{job} {packs:?}");
            let next = out.iter().map(|_| hinted.take_next().expect("one more").1.bytes);
            assert_eq!(next.collect::<Vec<_>>(), out, "{job} {packs:?}");
        }
        assert_eq!(hinted.take_next(), None);
        hinted.take_in(hint("q-1", &[1, 2, 3]), |pack| *pack != PackId::of(&[2]));
        let next = std::iter::from_fn(|| hinted.take_next()).map(|(_, pack)| pack.bytes);
        assert_eq!(next.collect::<Vec<_>>(), [1, 3], "what another process does is not waited for here");
    }
}
