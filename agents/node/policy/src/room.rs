//! Whether what a release takes has room on this node's disk, and which packs go if it has not.
//!
//! ```text
//!  budget         │ packs │ releases │ promised │ needed  … free │
//!  file system    │ packs │ releases │ of others … │ promised │ needed │ … free │ reserve │
//! ```
//!
//! Both must hold. A pack is needed until the release that is made of it is there; from then on it only serves peers, and may go.
//! What several releases that are on their way are made of is counted once.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use longshore_schemas::PackId;

const MIB: u64 = 1 << 20;
/// So much of the file system stays free, for logs, ledgers and what the rest of the machine writes: the larger of these, …
const RESERVE_BYTES: u64 = 64 * MIB;
const RESERVE_DIVISOR: u64 = 100;
/// … but of a small one no more than this part.
const RESERVE_DIVISOR_MIN: u64 = 16;

/// What a release takes, from before its packs are fetched until it is assembled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// What it is made of, with the sizes, whether it is here or not.
    pub packs: BTreeMap<PackId, u64>,
    /// What is written beside the packs.
    pub assembled_bytes: u64,
}

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What packs and releases may take together.
    pub budget_bytes: Option<u64>,
    /// Of the file system; no size means that it does not say.
    pub size_bytes: u64,
    pub free_bytes: u64,
    /// What is installed, without packs.
    pub releases_bytes: u64,
    /// Complete packs; those that may go first come first.
    pub packs: Vec<(PackId, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    Short(Shortage),
}

/// What is in the way of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    pub needed_bytes: u64,
    /// The most that can be free for it, with all packs gone that may go.
    pub free_bytes: u64,
    pub lacking_bytes: u64,
    pub bound: Bound,
    /// Packs without which there is room; none if there is not even then.
    pub spare: BTreeSet<PackId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Budget { bytes: u64 },
    FileSystem { reserve_bytes: u64 },
}

impl Claim {
    /// What of it is still to come onto this disk.
    fn coming(&self, here: &BTreeMap<PackId, u64>) -> u64 {
        let lacking = self.packs.iter().filter(|(pack, _)| !here.contains_key(*pack));
        self.assembled_bytes + lacking.map(|(_, bytes)| bytes).sum::<u64>()
    }

    /// With another one's.
    fn with(mut self, other: &Self) -> Self {
        self.packs.extend(&other.packs);
        self.assembled_bytes += other.assembled_bytes;
        self
    }
}

impl Disk {
    /// Whether a claim fits beside those that were promised room before.
    pub fn judge<'a>(&self, claim: &Claim, promised: impl IntoIterator<Item = &'a Claim>) -> Verdict {
        let here: BTreeMap<PackId, u64> = self.packs.iter().copied().collect();
        let promised = promised.into_iter().fold(Claim::default(), Claim::with);
        let all = promised.clone().with(claim);
        let (coming, needed_bytes) = (all.coming(&here), all.coming(&here) - promised.coming(&here));
        let lacks = |bound: &Bound| self.taken(*bound).saturating_add(coming).saturating_sub(self.most(*bound));
        let bound = self.bounds().max_by_key(lacks).filter(|bound| lacks(bound) > 0);
        // A claim that takes nothing more is none that a full disk is in the way of.
        let Some(bound) = bound.filter(|_| needed_bytes > 0) else { return Verdict::Fits };
        let lacking = lacks(&bound);
        let may_go = || self.packs.iter().filter(|(pack, _)| !all.packs.contains_key(pack));
        let could_go: u64 = may_go().map(|(_, bytes)| bytes).sum();
        let taken = self.taken(bound) + coming - needed_bytes;
        Verdict::Short(Shortage {
            needed_bytes,
            free_bytes: (self.most(bound) + could_go).saturating_sub(taken),
            lacking_bytes: lacking.saturating_sub(could_go),
            bound,
            spare: if could_go < lacking { BTreeSet::new() } else { first_of(may_go(), lacking) },
        })
    }

    fn bounds(&self) -> impl Iterator<Item = Bound> {
        let reserve = (self.size_bytes / RESERVE_DIVISOR).max(RESERVE_BYTES);
        let reserve_bytes = reserve.min(self.size_bytes / RESERVE_DIVISOR_MIN);
        let file_system = (self.size_bytes > 0).then_some(Bound::FileSystem { reserve_bytes });
        self.budget_bytes.map(|bytes| Bound::Budget { bytes }).into_iter().chain(file_system)
    }

    /// What a bound counts that is here already.
    fn taken(&self, bound: Bound) -> u64 {
        match bound {
            Bound::Budget { .. } => self.releases_bytes + self.packs.iter().map(|(_, bytes)| bytes).sum::<u64>(),
            Bound::FileSystem { reserve_bytes } => self.size_bytes.saturating_sub(self.free_bytes) + reserve_bytes,
        }
    }

    /// What a bound lets there be.
    fn most(&self, bound: Bound) -> u64 {
        match bound {
            Bound::Budget { bytes } => bytes,
            Bound::FileSystem { .. } => self.size_bytes,
        }
    }
}

/// The first packs that have so many bytes together.
fn first_of<'a>(packs: impl Iterator<Item = &'a (PackId, u64)>, bytes: u64) -> BTreeSet<PackId> {
    let mut freed = 0;
    let begun = packs.take_while(|(_, bytes_of)| {
        let is_lacking = freed < bytes;
        freed += bytes_of;
        is_lacking
    });
    begun.map(|(pack, _)| *pack).collect()
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [needed, free, lacking] = [self.needed_bytes, self.free_bytes, self.lacking_bytes].map(size);
        match self.bound {
            Bound::Budget { bytes } => write!(
                f,
                "it needs {needed}, and {free} of the disk budget of {} can be free, which is {lacking} too little: raise \
                 --disk-budget, or have fewer releases on this node",
                size(bytes)
            ),
            Bound::FileSystem { reserve_bytes } => write!(
                f,
                "it needs {needed}, and {free} of the disk can be free besides the {} that stay free, which is {lacking} too \
                 little: free some space there, or put --data on a larger disk",
                size(reserve_bytes)
            ),
        }
    }
}

/// "12.5 MiB".
fn size(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        // The tenth that is begun does not count.
        Some((unit, shift)) => format!("{}.{} {unit}", bytes >> shift, ((bytes >> (shift - 10)) % 1024) * 10 / 1024),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn pack(name: char) -> PackId {
        PackId::of(&[name as u8])
    }

    /// Packs of ten bytes, by their letters.
    fn packs(names: &str) -> Vec<(PackId, u64)> {
        names.chars().map(|name| (pack(name), 10)).collect()
    }

    fn claim((names, assembled_bytes): (&str, u64)) -> Claim {
        Claim { packs: packs(names).into_iter().collect(), assembled_bytes }
    }

    /// A disk that bounds nothing by itself.
    fn budget(budget_bytes: u64, releases_bytes: u64, held: &str) -> Disk {
        let packs = packs(held);
        Disk { budget_bytes: Some(budget_bytes), size_bytes: 0, free_bytes: 0, releases_bytes, packs }
    }

    fn words(verdict: &Verdict) -> String {
        let Verdict::Short(Shortage { needed_bytes, free_bytes, lacking_bytes, spare, .. }) = verdict else {
            return "fits".to_owned();
        };
        let gone: String = ('a'..='z').filter(|name| spare.contains(&pack(*name))).collect();
        match lacking_bytes {
            0 => format!("without {gone}"),
            _ => format!("{needed_bytes} of {free_bytes}, {lacking_bytes} short{gone}"),
        }
    }

    #[test]
    fn a_budget_holds_packs_and_releases_and_what_was_promised() {
        let nothing: &[(&str, u64)] = &[];
        let another: &[(&str, u64)] = &[("bc", 30)];
        let others: &[(&str, u64)] = &[("bc", 30), ("cd", 20)];
        // Budget, releases and packs here; what is claimed, and what was before; the verdict.
        let table = [
            // The last byte counts.
            ((50, 0, ""), ("ab", 30), nothing, "fits"),
            ((49, 0, ""), ("ab", 30), nothing, "50 of 49, 1 short"),
            ((50, 20, ""), ("ab", 10), nothing, "fits"),
            ((50, 21, ""), ("ab", 10), nothing, "30 of 29, 1 short"),
            // What is here is not fetched, and stays for as long as it is needed.
            ((50, 0, "ab"), ("abc", 20), nothing, "fits"),
            ((49, 0, "ab"), ("abc", 20), nothing, "30 of 29, 1 short"),
            // What only serves peers goes, the first of it first and no more than that.
            ((60, 10, "wxyz"), ("a", 10), nothing, "without w"),
            ((59, 10, "wxyz"), ("a", 10), nothing, "without wx"),
            ((50, 10, "wxyz"), ("a", 10), nothing, "without wx"),
            ((30, 10, "wxyz"), ("a", 10), nothing, "without wxyz"),
            // Nothing goes that does not help.
            ((29, 10, "wxyz"), ("a", 10), nothing, "20 of 19, 1 short"),
            ((40, 10, "wxyz"), ("zwa", 10), nothing, "20 of 10, 10 short"),
            // Two at once: what both are made of is needed once, and nobody's packs go.
            ((80, 0, ""), ("ab", 20), another, "fits"),
            ((79, 0, ""), ("ab", 20), another, "30 of 29, 1 short"),
            ((80, 0, "bc"), ("ab", 20), another, "fits"),
            ((85, 0, "xbc"), ("ab", 20), another, "without x"),
            ((110, 0, ""), ("ab", 20), others, "fits"),
            ((109, 0, ""), ("ab", 20), others, "30 of 29, 1 short"),
            // A budget that was lowered is in nobody's way who takes nothing.
            ((10, 50, "ab"), ("ab", 0), nothing, "fits"),
            ((10, 50, "ab"), ("ab", 1), nothing, "1 of 0, 61 short"),
        ];
        for ((most, releases, held), claimed, promised, expected) in table {
            let promised: Vec<Claim> = promised.iter().copied().map(claim).collect();
            let verdict = budget(most, releases, held).judge(&claim(claimed), &promised);
            assert_eq!(words(&verdict), expected, "{most} {releases} {held:?} {claimed:?} {promised:?}");
        }
    }

    #[test]
    fn a_file_system_has_its_reserve() {
        // Size and free bytes, packs that may go, what is assembled; the verdict.
        let table = [
            ((10 * GIB, 2 * GIB, ""), 2 * GIB - 10 * GIB / 100, "fits".to_owned()),
            (
                (10 * GIB, 2 * GIB, ""),
                2 * GIB - 10 * GIB / 100 + 1,
                format!("{} of {}, 1 short", 2 * GIB - 10 * GIB / 100 + 1, 2 * GIB - 10 * GIB / 100),
            ),
            ((2 * GIB, GIB, ""), GIB - 64 * MIB, "fits".to_owned()),
            ((2 * GIB, GIB, "xy"), GIB - 64 * MIB + 1, "without x".to_owned()),
            ((2 * GIB, GIB, "xy"), GIB - 64 * MIB + 11, "without xy".to_owned()),
            ((32 * MIB, 20 * MIB, ""), 18 * MIB, "fits".to_owned()),
            ((32 * MIB, 20 * MIB, ""), 19 * MIB, format!("{} of {}, {MIB} short", 19 * MIB, 18 * MIB)),
            ((32 * MIB, MIB, ""), MIB, format!("{MIB} of 0, {} short", 2 * MIB)),
            // One that does not say how large it is.
            ((0, 0, ""), GIB, "fits".to_owned()),
        ];
        for ((size_bytes, free_bytes, held), assembled, expected) in table {
            let disk = Disk { budget_bytes: None, size_bytes, free_bytes, releases_bytes: 7 * GIB, packs: packs(held) };
            let verdict = disk.judge(&claim(("", assembled)), &[]);
            assert_eq!(words(&verdict), expected, "{size_bytes} {free_bytes} {held:?} {assembled}");
        }
    }

    #[test]
    fn the_tighter_bound_counts() {
        let disk = Disk { size_bytes: 32 * MIB, free_bytes: 20 * MIB, ..budget(30, 0, "") };
        let Verdict::Short(shortage) = disk.judge(&claim(("", 40)), &[]) else { panic!("there is no room") };
        assert_eq!(shortage.bound, Bound::Budget { bytes: 30 });
        let disk = Disk { budget_bytes: Some(GIB), ..disk };
        let Verdict::Short(shortage) = disk.judge(&claim(("", 20 * MIB)), &[]) else { panic!("there is no room") };
        assert_eq!(shortage.bound, Bound::FileSystem { reserve_bytes: 2 * MIB });
    }

    #[test]
    fn a_shortage_says_what_to_do() {
        let lowered = Disk { packs: Vec::new(), ..budget(20 * GIB, 16 * GIB - 110 * MIB, "") };
        let Verdict::Short(shortage) = lowered.judge(&claim(("", 10 * GIB + 300 * MIB)), &[]) else {
            panic!("there is no room")
        };
        let said = shortage.to_string();
        for part in ["needs 10.2 GiB", "4.1 GiB of the disk budget of 20.0 GiB", "6.1 GiB too little", "--disk-budget"]
        {
            assert!(said.contains(part), "no {part:?} in {said:?}");
        }
        let full = Disk { budget_bytes: None, size_bytes: 32 * MIB, free_bytes: 3 * MIB + 1, ..lowered };
        let Verdict::Short(shortage) = full.judge(&claim(("", 5 * MIB)), &[]) else { panic!("there is no room") };
        let said = shortage.to_string();
        for part in ["needs 5.0 MiB", "1.0 MiB of the disk", "the 2.0 MiB that stay", "3.9 MiB too little", "--data"] {
            assert!(said.contains(part), "no {part:?} in {said:?}");
        }
    }

    #[test]
    fn sizes_are_for_people() {
        let table = [
            (0, "0 bytes"),
            (1_023, "1023 bytes"),
            (1_024, "1.0 KiB"),
            (GIB - 1, "1023.9 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ];
        for (bytes, text) in table {
            assert_eq!(size(bytes), text);
        }
    }
}
