//! A collector beside publishers, interleaved step by step: nothing that is published ever lacks anything, and what nobody refers to
//! goes in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use longshore_artifact::collect::{Announced, Answer, Condemned, Effect, Listed, Report, Round, Settings, Standing};
use longshore_schemas::{ArtifactId, PackId, Timestamp};
use proptest::prelude::*;

const GRACE: Duration = Duration::from_secs(60);

fn settings(named_max: usize, begin_at: u64) -> Settings {
    Settings { grace: GRACE, named_max, dry_run: false, begin_at }
}

fn artifact(number: usize) -> ArtifactId {
    ArtifactId::of(&[b'a', number as u8])
}

fn pack(number: usize) -> PackId {
    PackId::of(&[b'p', number as u8])
}

#[derive(Default)]
struct Bucket {
    now: Timestamp,
    roots: BTreeMap<ArtifactId, (Vec<PackId>, Timestamp)>,
    packs: BTreeMap<PackId, Timestamp>,
    announced: BTreeMap<String, Vec<PackId>>,
    condemned: Condemned,
    live: BTreeSet<ArtifactId>,
    retired: BTreeMap<ArtifactId, Timestamp>,
}

impl Bucket {
    fn standing(&self, artifact: &ArtifactId) -> Standing {
        match self.retired.get(artifact) {
            _ if self.live.contains(artifact) => Standing::Live,
            Some(since) => Standing::RetiredSince(*since),
            None => Standing::Unknown,
        }
    }

    /// Carries out an effect, with pages of `page` objects.
    fn perform(&mut self, effect: &Effect, page: usize) -> Answer {
        fn listed<T: Copy + Ord>(
            all: impl Iterator<Item = (T, Timestamp)>,
            after: Option<&T>,
            page: usize,
        ) -> Vec<Listed<T>> {
            let rest = all.filter(|(name, _)| after.is_none_or(|after| name > after)).take(page);
            rest.map(|(name, modified)| Listed { name, bytes: 1, modified }).collect()
        }
        match effect {
            Effect::ListRoots(after) => {
                let all = self.roots.iter().map(|(name, (_, modified))| (*name, *modified));
                Answer::Roots(listed(all, after.as_ref(), page))
            }
            Effect::ListPacks(after) => {
                let all = self.packs.iter().map(|(name, modified)| (*name, *modified));
                Answer::Packs(listed(all, after.as_ref(), page))
            }
            Effect::ReadRoots(artifacts) => {
                let all: Vec<_> = artifacts.iter().filter_map(|artifact| self.roots.get(artifact)).collect();
                let packs = all.iter().flat_map(|(packs, _)| packs.clone()).collect();
                Answer::Names { found: all.len() as u64, packs }
            }
            Effect::ListAnnounced => {
                let all = self.announced.keys().filter_map(|key| Announced::parse(key)).collect();
                Answer::Announced { all, is_current: true }
            }
            Effect::ReadAnnounced(announced) => {
                let packs = self.announced.get(&announced.key).cloned();
                Answer::Names { found: u64::from(packs.is_some()), packs: packs.unwrap_or_default() }
            }
            Effect::Condemn(condemned) => {
                self.condemned = condemned.clone();
                Answer::Done
            }
            Effect::Absolve => {
                self.condemned = Condemned::default();
                Answer::Done
            }
            Effect::DeleteRoots(roots) => {
                for root in roots {
                    assert!(self.condemned.artifacts.contains(root), "nothing is deleted that is not condemned");
                    self.roots.remove(root);
                }
                Answer::Done
            }
            Effect::DeletePacks(packs) => {
                for pack in packs {
                    assert!(self.condemned.packs.contains(pack), "nothing is deleted that is not condemned");
                    self.packs.remove(pack);
                }
                Answer::Done
            }
            Effect::End => Answer::Done,
        }
    }

    fn publish(&mut self, number: usize, packs: &[usize]) {
        let packs: Vec<PackId> = packs.iter().map(|number| pack(*number)).collect();
        for pack in &packs {
            self.packs.entry(*pack).or_insert(self.now);
        }
        self.roots.insert(artifact(number), (packs, self.now));
        self.live.insert(artifact(number));
    }

    fn retire(&mut self, number: usize) {
        if self.live.remove(&artifact(number)) {
            self.retired.insert(artifact(number), self.now);
        }
    }

    fn run(&mut self, settings: Settings, page: usize) -> Report {
        let mut round = Round::new(settings);
        let mut effect = round.start();
        for _ in 0..10_000 {
            if effect == Effect::End {
                return round.report();
            }
            let answer = self.perform(&effect, page);
            effect = round.handle(answer, self.now, &|artifact| self.standing(artifact));
        }
        panic!("a round has no end");
    }

    /// Whatever is live has its root and all that this names.
    fn lacks(&self) -> Option<String> {
        self.live.iter().find_map(|artifact| {
            let Some((packs, _)) = self.roots.get(artifact) else { return Some(format!("{artifact} has no root")) };
            let lacks = packs.iter().find(|pack| !self.packs.contains_key(*pack));
            lacks.map(|pack| format!("{artifact} lacks {pack}"))
        })
    }
}

#[test]
fn what_nothing_names_goes_after_its_time_and_all_else_stays() {
    // The same whatever there is room for, and wherever a round begins.
    for (named_max, begin_at) in [(1_000, 0), (3, 0), (2, u64::MAX / 2), (5, 1)] {
        let mut bucket = Bucket::default();
        bucket.publish(1, &(0..20).collect::<Vec<_>>());
        bucket.publish(2, &(10..30).collect::<Vec<_>>());
        bucket.packs.insert(pack(100), bucket.now);
        bucket.roots.insert(artifact(9), (vec![pack(101)], bucket.now));
        bucket.packs.insert(pack(101), bucket.now);
        bucket.announced.insert(Announced::new(artifact(7), "job.1", b"content").key, vec![pack(102)]);
        bucket.packs.insert(pack(102), bucket.now);
        bucket.retire(1);
        assert_eq!(bucket.run(settings(named_max, begin_at), 7).packs_deleted, 0, "nothing is old enough");
        bucket.now = bucket.now + GRACE;
        bucket.packs.insert(pack(103), bucket.now);
        let dry = bucket.run(Settings { dry_run: true, ..settings(1_000, begin_at) }, 7);
        assert_eq!(bucket.packs.len(), 34, "nothing was deleted");
        let report = bucket.run(settings(named_max, begin_at), 7);
        assert_eq!((report.packs_deleted, report.roots_deleted), (12, 2), "{named_max} {begin_at}");
        assert_eq!((dry.packs_deleted, dry.roots_deleted), (12, 2), "{named_max} {begin_at}");
        assert_eq!(bucket.lacks(), None);
        let left: BTreeSet<_> = bucket.packs.keys().copied().collect();
        let expected: BTreeSet<_> = (10..30).chain([102, 103]).map(pack).collect();
        assert_eq!(left, expected, "{named_max} {begin_at}");
        assert!(bucket.condemned.is_empty());
        assert_eq!(bucket.run(settings(named_max, begin_at), 7).packs_deleted, 0);
    }
}

#[test]
fn a_look_that_is_long_ago_is_not_relied_upon() {
    let mut bucket = Bucket::default();
    for number in 0..200 {
        bucket.packs.insert(pack(number), bucket.now);
    }
    bucket.now = bucket.now + GRACE;
    let mut round = Round::new(settings(1_000, 0));
    let mut effect = round.start();
    let (mut looks, mut steps) = (0, 0);
    while effect != Effect::End {
        looks += usize::from(effect == Effect::ListAnnounced);
        if let Effect::DeletePacks(_) = &effect {
            steps += 1;
            bucket.now = bucket.now + Duration::from_secs(61);
        }
        let answer = bucket.perform(&effect, 1_000);
        effect = round.handle(answer, bucket.now, &|artifact| bucket.standing(artifact));
    }
    assert!(bucket.packs.is_empty());
    assert_eq!(looks, steps, "each step took longer than a look lasts");
}

/// What was published since a round read the roots, and is announced no longer, it knows nothing of: so it ends.
#[test]
fn a_round_that_was_replaced_deletes_nothing_more() {
    let mut bucket = Bucket::default();
    bucket.publish(1, &[1]);
    bucket.packs.insert(pack(2), bucket.now);
    bucket.now = bucket.now + GRACE;
    let mut round = Round::new(settings(1_000, 0));
    let mut effect = round.start();
    let mut deleted = 0;
    while effect != Effect::End {
        deleted += usize::from(matches!(effect, Effect::DeletePacks(_)));
        let answer = match bucket.perform(&effect, 1_000) {
            Answer::Announced { all, .. } => Answer::Announced { all, is_current: false },
            other => other,
        };
        effect = round.handle(answer, bucket.now, &|artifact| bucket.standing(artifact));
    }
    assert_eq!((deleted, bucket.packs.len()), (0, 2));
}

/// Somebody who publishes one artifact, in steps.
struct Publisher {
    artifact: usize,
    packs: Vec<usize>,
    step: usize,
}

impl Publisher {
    /// As the API and the regions do it.
    fn go_on(&mut self, bucket: &mut Bucket, by: usize) {
        let packs: Vec<PackId> = self.packs.iter().map(|number| pack(*number)).collect();
        let id = artifact(self.artifact);
        match self.step {
            // Uploads what is not there.
            0 => {
                for pack in &packs {
                    bucket.packs.entry(*pack).or_insert(bucket.now);
                }
            }
            1 => drop(bucket.announced.insert(Announced::new(id, &format!("job-{by}"), b"the same").key, packs)),
            2 => {
                let is_condemned = |pack| bucket.condemned.packs.contains(pack);
                if packs.iter().any(is_condemned) || bucket.condemned.artifacts.contains(&id) {
                    return;
                }
            }
            step if step - 3 < packs.len() => {
                if !bucket.packs.contains_key(&packs[step - 3]) {
                    self.step = 0;
                    return;
                }
            }
            step if step - 3 == packs.len() => drop(bucket.roots.insert(id, (packs, bucket.now))),
            step if step - 3 == packs.len() + 1 => {
                bucket.live.insert(id);
            }
            _ => return,
        }
        self.step += 1;
    }

    fn is_done(&self) -> bool {
        self.step > self.packs.len() + 4
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_published_lacks_anything(
        schedule in prop::collection::vec((0u8..12, 0usize..6), 50..600),
        named_max in 2usize..12,
    ) {
        let mut bucket = Bucket::default();
        let mut publishers: BTreeMap<usize, Publisher> = BTreeMap::new();
        let mut round: Option<(Round, Effect)> = None;
        let mut count = 0;
        for (what, number) in schedule {
            match what {
                0 => {
                    count += 1;
                    // Two may publish the same at once, with packs that others have too.
                    let packs = (0..=number).map(|n| (n * 3 + number) % 8).collect();
                    publishers.insert(count, Publisher { artifact: number % 4, packs, step: 0 });
                }
                1 => bucket.retire(number % 4),
                2 => bucket.now = bucket.now + Duration::from_secs(20),
                3..=7 => {
                    let nth = number % publishers.len().max(1);
                    if let Some((by, publisher)) = publishers.iter_mut().nth(nth) {
                        let before = publisher.is_done();
                        publisher.go_on(&mut bucket, *by);
                        prop_assert!(before || !publisher.is_done() || bucket.lacks().is_none());
                    }
                }
                _ => match round.take() {
                    Some((mut running, effect)) if effect != Effect::End => {
                        let answer = bucket.perform(&effect, 3);
                        let effect = running.handle(answer, bucket.now, &|artifact| bucket.standing(artifact));
                        round = Some((running, effect));
                    }
                    _ => {
                        // Between rounds what is known otherwise is announced no longer.
                        publishers.retain(|by, publisher| {
                            if publisher.is_done() {
                                bucket.announced.remove(&Announced::new(artifact(publisher.artifact), &format!("job-{by}"), b"the same").key);
                            }
                            !publisher.is_done()
                        });
                        let mut running = Round::new(settings(named_max, number as u64 * (u64::MAX / 7)));
                        let effect = running.start();
                        round = Some((running, effect));
                    }
                },
            }
            prop_assert_eq!(bucket.lacks(), None);
        }
    }
}
