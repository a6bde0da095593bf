//! Collecting what nothing refers to any more, beside publishers that may be about to refer to it. Without I/O.
//!
//! ```text
//! roots:  page ─▶ of artifacts retired a while ago ─condemn─▶ who publishes it? ─nobody─▶ delete ─▶ absolve ─▶ next page
//!           └─▶ of all others: remember which packs they name
//! packs:  page ─▶ old, and nobody names them ───────condemn─▶ who publishes them by now? ─nobody─▶ delete ─▶ absolve ─▶ next page
//! ```
//!
//! A publisher writes what it is about to refer to (its *announcement*) before it looks whether all of it is there and not condemned. A
//! collector writes what it is about to delete (what it *condemns*) before it looks at the announcements. Whoever comes second sees the
//! other: nothing that is referred to is deleted, however slow, late or dead either is. Announcements are removed between rounds only, by
//! collectors, once what they announced is known otherwise.
//!
//! A round does not know what was published since it read the roots but by what is announced. So each round leaves a *mark* before it begins,
//! and whoever removes an announcement removes the marks of all other rounds first: a round that finds its mark gone, after it has looked at the
//! announcements, ends there, and so does one that finds an announcement gone that was listed.
//!
//! What was condemned is deleted at once, or looked at again: so what a dead collector condemned can be absolved by others after
//! [`CONDEMNED_LASTS`].
//!
//! Memory is bounded whatever a bucket holds: of each pack that is named eight bytes are remembered, of as many packs as there is room
//! for; a round takes the space of names in as many spans as that needs, and reads the roots anew for each. Two packs that agree in these
//! bytes are kept for each other's sake, which costs room only.

mod named;

use std::{collections::BTreeSet, fmt, time::Duration};

use longshore_planted::{Bug, planted};
use longshore_schemas::{ArtifactId, JobId, PackId, Timestamp};

/// What a round has done, or would do.
pub use longshore_schemas::http::CollectedView as Report;
use serde::{Deserialize, Serialize};

use named::Named;

/// Where publishers announce what they are about to publish.
pub const ANNOUNCED_PREFIX: &str = "announced/";
/// Where collectors say what they are about to delete.
pub const CONDEMNED_PREFIX: &str = "condemned/";
/// Where rounds that are under way leave their marks.
pub const ROUNDS_PREFIX: &str = "rounds/";
/// After so long, nobody who condemned something deletes it any more.
pub const CONDEMNED_LASTS: Duration = Duration::from_secs(10 * 60);
/// So long after it was condemned something may be deleted without another look.
const LOOK_LASTS: Duration = Duration::from_secs(60);
/// Of the hash of what is announced, in its key.
const CONTENT_DIGITS: usize = 32;
/// Roots that are read in one step.
const READ_MAX: usize = 16;
/// Objects that are deleted in one step.
const STEP_MAX: usize = 50;

/// What a collector is about to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    pub artifacts: BTreeSet<ArtifactId>,
    pub packs: BTreeSet<PackId>,
}

impl Condemned {
    pub fn is_empty(&self) -> bool {
        self.artifacts.is_empty() && self.packs.is_empty()
    }

    pub fn extend(&mut self, other: Self) {
        self.artifacts.extend(other.artifacts);
        self.packs.extend(other.packs);
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    pub name: T,
    pub bytes: u64,
    pub modified: Timestamp,
}

/// What an announcement is called, and the artifact that it is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Announced {
    pub key: String,
    pub artifact: ArtifactId,
}

impl Announced {
    /// `by` says who announces it. Its content is part of the key: what was read under a key once need not be read again, and
    /// what is announced again with other packs is another announcement.
    pub fn new(artifact: ArtifactId, by: &str, content: &[u8]) -> Self {
        let content = blake3::hash(content).to_hex();
        Self { key: format!("{ANNOUNCED_PREFIX}{artifact}.{by}.{}", &content[..CONTENT_DIGITS]), artifact }
    }

    pub fn parse(key: &str) -> Option<Self> {
        let (artifact, _) = key.strip_prefix(ANNOUNCED_PREFIX)?.split_once('.')?;
        Some(Self { key: key.to_owned(), artifact: artifact.parse().ok()? })
    }

    /// Who announced it.
    pub fn by(&self) -> &str {
        let rest = self.key.strip_prefix(ANNOUNCED_PREFIX).and_then(|rest| rest.split_once('.'));
        rest.and_then(|(_, rest)| rest.rsplit_once('.')).map_or("", |(by, _)| by)
    }
}

/// Who publishes to the main bucket, as announcements there say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publisher {
    /// Of a build. What it published is requested of replication before it is over, or never will be.
    Attempt { job: JobId, attempt: u32 },
    /// Of what was built elsewhere. It is requested of replication within minutes, or never will be.
    Import { begun: Timestamp },
}

const IMPORT: &str = "import";

impl fmt::Display for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempt { job, attempt } => write!(f, "{job}.{attempt}"),
            Self::Import { begun } => write!(f, "{IMPORT}.{}", begun.millis()),
        }
    }
}

impl Publisher {
    pub fn parse(by: &str) -> Option<Self> {
        let (what, number) = by.rsplit_once('.')?;
        Some(if what == IMPORT {
            Self::Import { begun: Timestamp::from_millis(number.parse().ok()?) }
        } else {
            Self::Attempt { job: what.parse().ok()?, attempt: number.parse().ok()? }
        })
    }
}

/// What is known of the artifact of a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Live,
    RetiredSince(Timestamp),
    /// Nobody has heard of it.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How long what nothing refers to is left alone: longer than a build takes from its first upload, or its base, to its end.
    pub grace: Duration,
    /// Packs that are remembered at once, eight bytes each.
    pub named_max: usize,
    /// Only says what it would do.
    pub dry_run: bool,
    /// Where in the space of names a round begins, so that rounds that are cut off get everywhere nevertheless.
    pub begin_at: u64,
}

/// What a round wants next. There is one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// A page of roots, after this one, in the order of their names; an empty one is the end.
    ListRoots(Option<ArtifactId>),
    /// The packs that these roots name.
    ReadRoots(Vec<ArtifactId>),
    /// All announcements there are; then, whether the round's mark is still there, and what is known of artifacts as of now.
    ListAnnounced,
    ReadAnnounced(Announced),
    /// A page of packs after this one; an empty one is the end.
    ListPacks(Option<PackId>),
    /// In place of what this round condemned before; durable when answered.
    Condemn(Condemned),
    Absolve,
    DeleteRoots(Vec<ArtifactId>),
    DeletePacks(Vec<PackId>),
    End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done,
    Roots(Vec<Listed<ArtifactId>>),
    Announced {
        all: Vec<Announced>,
        is_current: bool,
    },
    /// All that those name that are there, which are so many.
    Names {
        found: u64,
        packs: Vec<PackId>,
    },
    Packs(Vec<Listed<PackId>>),
}

#[derive(Debug)]
enum Phase {
    Begin,
    Roots,
    /// Of a page of roots: those to delete, and all others.
    Condemning(Vec<ArtifactId>, Vec<ArtifactId>),
    Looking(Vec<ArtifactId>, Vec<ArtifactId>),
    DeletingRoots(Vec<ArtifactId>),
    Reading(Vec<ArtifactId>),
    Packs,
    CondemningPacks(Vec<Listed<PackId>>),
    LookingAtPacks(Vec<Listed<PackId>>),
    ReadingAnnounced(Vec<Listed<PackId>>, Vec<Announced>),
    DeletingPacks(Vec<Listed<PackId>>),
    AbsolvingPacks,
    End,
}

/// One round over a bucket.
#[derive(Debug)]
pub struct Round {
    settings: Settings,
    phase: Phase,
    named: Named,
    /// Spans of names that come after this one.
    spans: Vec<(u64, Option<u64>)>,
    /// Roots are deleted in the first span.
    is_first: bool,
    /// Announcements that were read in this span.
    read: BTreeSet<String>,
    after_root: Option<ArtifactId>,
    after_pack: Option<PackId>,
    condemned_at: Timestamp,
    report: Report,
}

impl Round {
    pub fn new(settings: Settings) -> Self {
        let begin = settings.begin_at;
        let spans = if begin == 0 { Vec::new() } else { vec![(0, Some(begin))] };
        Self {
            settings,
            phase: Phase::Begin,
            named: Named::new(begin, None, settings.named_max),
            spans,
            is_first: true,
            read: BTreeSet::new(),
            after_root: None,
            after_pack: None,
            condemned_at: Timestamp::default(),
            report: Report::default(),
        }
    }

    pub fn report(&self) -> Report {
        self.report
    }

    pub fn start(&mut self) -> Effect {
        self.phase = Phase::Roots;
        Effect::ListRoots(None)
    }

    /// Takes the answer to the last effect. `now` is of a clock that goes with real time.
    pub fn handle(&mut self, answer: Answer, now: Timestamp, standing: &dyn Fn(&ArtifactId) -> Standing) -> Effect {
        match (std::mem::replace(&mut self.phase, Phase::End), answer) {
            (Phase::Roots, Answer::Roots(page)) => self.roots(page, now, standing),
            (Phase::Condemning(doomed, others), Answer::Done) => {
                self.phase = Phase::Looking(doomed, others);
                Effect::ListAnnounced
            }
            (_, Answer::Announced { is_current: false, .. }) if !planted(Bug::CollectThoughReplaced) => Effect::End,
            (Phase::Looking(doomed, mut others), Answer::Announced { all: announced, .. }) => {
                // What is known of them is newer than when they were condemned.
                let is_doomed = |artifact: &ArtifactId| {
                    self.is_over(standing(artifact), None, now)
                        && announced.iter().all(|announced| announced.artifact != *artifact)
                };
                let (doomed, spared): (Vec<_>, Vec<_>) = doomed.into_iter().partition(is_doomed);
                others.extend(spared);
                self.report.roots_deleted += if self.is_first { doomed.len() as u64 } else { 0 };
                self.phase = Phase::DeletingRoots(others);
                if doomed.is_empty() || self.settings.dry_run {
                    return self.handle(Answer::Done, now, standing);
                }
                Effect::DeleteRoots(doomed)
            }
            (Phase::DeletingRoots(others), Answer::Done) => {
                self.phase = Phase::Reading(others);
                if self.settings.dry_run { self.read_next() } else { Effect::Absolve }
            }
            (Phase::Reading(left), Answer::Done) => {
                self.phase = Phase::Reading(left);
                self.read_next()
            }
            (Phase::Reading(left), Answer::Names { found, packs }) => {
                self.report.roots_kept += if self.is_first { found } else { 0 };
                self.named.extend(packs.iter());
                self.phase = Phase::Reading(left);
                self.read_next()
            }
            (Phase::Packs, Answer::Packs(page)) => self.packs(page, now),
            (Phase::CondemningPacks(doomed), Answer::Done) => {
                self.phase = Phase::LookingAtPacks(doomed);
                Effect::ListAnnounced
            }
            (Phase::LookingAtPacks(doomed), Answer::Announced { all: mut announced, .. }) => {
                announced.retain(|announced| !self.read.contains(&announced.key));
                self.read_announced(doomed, announced, now)
            }
            // Somebody removed it since it was listed, and what it announced may be known to be live: not to this round.
            (Phase::ReadingAnnounced(..), Answer::Names { found: 0, .. })
                if !self.settings.dry_run && !planted(Bug::CollectThoughReplaced) =>
            {
                Effect::End
            }
            (Phase::ReadingAnnounced(doomed, left), Answer::Names { packs, .. }) => {
                self.named.extend(packs.iter());
                self.read_announced(doomed, left, now)
            }
            (Phase::DeletingPacks(left), Answer::Done) => self.delete_packs(left, now),
            (Phase::AbsolvingPacks, Answer::Done) => {
                self.phase = Phase::Packs;
                Effect::ListPacks(self.after_pack)
            }
            // Whoever drives it answers something else than was asked: the round is over.
            (_, _) => Effect::End,
        }
    }

    /// Whether nothing speaks for a root any more.
    fn is_over(&self, standing: Standing, modified: Option<Timestamp>, now: Timestamp) -> bool {
        let since = match standing {
            Standing::Live => return false,
            Standing::RetiredSince(since) => since,
            // It was found to be old enough when it was listed.
            Standing::Unknown => modified.unwrap_or_default(),
        };
        now.since(since) >= self.settings.grace
    }

    fn roots(
        &mut self,
        page: Vec<Listed<ArtifactId>>,
        now: Timestamp,
        standing: &dyn Fn(&ArtifactId) -> Standing,
    ) -> Effect {
        let Some(last) = page.last() else {
            self.named.seal();
            self.after_pack = self.named.before_first();
            self.phase = Phase::Packs;
            return Effect::ListPacks(self.after_pack);
        };
        self.after_root = Some(last.name);
        // Where nothing is deleted, they are there in later spans as well.
        let looks = self.is_first || self.settings.dry_run;
        let is_doomed =
            |root: &Listed<ArtifactId>| looks && self.is_over(standing(&root.name), Some(root.modified), now);
        let (doomed, others): (Vec<_>, Vec<_>) = page.into_iter().partition(is_doomed);
        let names = |roots: Vec<Listed<ArtifactId>>| roots.into_iter().map(|root| root.name).collect::<Vec<_>>();
        let (doomed, others) = (names(doomed), names(others));
        if doomed.is_empty() {
            self.phase = Phase::Reading(others);
            return self.read_next();
        }
        if self.settings.dry_run {
            self.phase = Phase::Looking(doomed, others);
            return Effect::ListAnnounced;
        }
        let artifacts = doomed.iter().copied().collect();
        self.phase = Phase::Condemning(doomed, others);
        Effect::Condemn(Condemned { artifacts, ..Condemned::default() })
    }

    fn read_next(&mut self) -> Effect {
        let Phase::Reading(left) = &mut self.phase else { return Effect::End };
        let roots = left.split_off(left.len().saturating_sub(READ_MAX));
        if !roots.is_empty() {
            return Effect::ReadRoots(roots);
        }
        self.phase = Phase::Roots;
        Effect::ListRoots(self.after_root)
    }

    fn packs(&mut self, page: Vec<Listed<PackId>>, now: Timestamp) -> Effect {
        let last = page.last().map(|pack| pack.name);
        if last.is_none_or(|last| self.named.is_after(&last)) && page.iter().all(|pack| self.named.is_after(&pack.name))
        {
            return self.next_span();
        }
        self.after_pack = last;
        let mut doomed = Vec::new();
        for pack in page {
            if !self.named.has_room_for(&pack.name) {
                // Another span's.
            } else if self.named.contains(&pack.name) || now.since(pack.modified) < self.settings.grace {
                self.keep(&pack);
            } else {
                doomed.push(pack);
            }
        }
        if doomed.is_empty() {
            self.phase = Phase::Packs;
            return Effect::ListPacks(self.after_pack);
        }
        self.condemn(doomed, now)
    }

    fn condemn(&mut self, doomed: Vec<Listed<PackId>>, now: Timestamp) -> Effect {
        if self.settings.dry_run {
            self.phase = Phase::LookingAtPacks(doomed);
            return Effect::ListAnnounced;
        }
        self.condemned_at = now;
        let packs = doomed.iter().map(|pack| pack.name).collect();
        self.phase = Phase::CondemningPacks(doomed);
        Effect::Condemn(Condemned { packs, ..Condemned::default() })
    }

    /// Reads what was announced since, then deletes what is still not named.
    fn read_announced(&mut self, doomed: Vec<Listed<PackId>>, mut left: Vec<Announced>, now: Timestamp) -> Effect {
        if let Some(announced) = left.pop()
            && !planted(Bug::CollectWithoutLookingAgain)
        {
            self.read.insert(announced.key.clone());
            self.phase = Phase::ReadingAnnounced(doomed, left);
            return Effect::ReadAnnounced(announced);
        }
        self.named.seal();
        // Announcements count even if there was no room for them: then the span has become smaller.
        let (doomed, spared): (Vec<_>, Vec<_>) = doomed
            .into_iter()
            .partition(|pack| self.named.has_room_for(&pack.name) && !self.named.contains(&pack.name));
        spared.iter().for_each(|pack| self.keep(pack));
        self.delete_packs(doomed, now)
    }

    fn delete_packs(&mut self, mut left: Vec<Listed<PackId>>, now: Timestamp) -> Effect {
        if left.is_empty() {
            self.phase = Phase::AbsolvingPacks;
            if self.settings.dry_run {
                self.phase = Phase::Packs;
                return Effect::ListPacks(self.after_pack);
            }
            return Effect::Absolve;
        }
        if self.settings.dry_run {
            left.iter().for_each(|pack| self.count_deleted(pack));
            return self.delete_packs(Vec::new(), now);
        }
        if now.since(self.condemned_at) > LOOK_LASTS {
            return self.condemn(left, now);
        }
        let step = left.split_off(left.len().saturating_sub(STEP_MAX));
        step.iter().for_each(|pack| self.count_deleted(pack));
        self.phase = Phase::DeletingPacks(left);
        Effect::DeletePacks(step.into_iter().map(|pack| pack.name).collect())
    }

    fn next_span(&mut self) -> Effect {
        if let Some(rest) = self.named.rest() {
            self.spans.push(rest);
        }
        let Some((from, to)) = self.spans.pop() else {
            self.phase = Phase::End;
            return Effect::End;
        };
        self.named = Named::new(from, to, self.settings.named_max);
        self.is_first = false;
        self.read.clear();
        self.after_root = None;
        self.phase = Phase::Roots;
        Effect::ListRoots(None)
    }

    fn keep(&mut self, pack: &Listed<PackId>) {
        self.report.packs_kept += 1;
        self.report.pack_bytes_kept += pack.bytes;
    }

    fn count_deleted(&mut self, pack: &Listed<PackId>) {
        self.report.packs_deleted += 1;
        self.report.pack_bytes_deleted += pack.bytes;
    }
}
