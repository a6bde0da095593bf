//! Looks at packs of the region's bucket that a node found damaged, and at roots that cannot be read, and has them copied anew.
//!
//! ```text
//! node: PackDamaged ─▶ [mender] reads the object itself ─▶ right: the node is believed less
//!                                                       └─▶ wrong or gone: out of the way, then reported as Failed ─▶ log
//!                                    log: ReplicaFailed ─▶ [copier] copies what is lacking, verified ─▶ Stored
//! ```
//!
//! A pack that was moved away is lent no more: tickets for it find nothing, and are lent again a second later, until the right
//! bytes are there. If the region dies between moving and reporting, the next node that finds nothing says so, and it goes on from there.
//!
//! Artifacts share packs: with a pack that is gone, every artifact of the region that has it is reported.
//!
//! No node's word is taken: the region looks itself. Looking costs a read, so a node that was wrong several times is
//! not listened to for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use longshore_artifact::PackRef;
use longshore_s3::Bucket;
use longshore_schemas::{
    ArtifactId, NodeId, PackId, RegionName,
    events::{ArtifactRequest, ReplicaReported, ReplicaStatus},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    outbox::Outbox,
    quarantine::{Held, inspect, set_aside, set_root_aside},
    walk::{self, Walk},
};

/// Words that wait. More are dropped: whoever needs the pack says it again.
const QUEUE_MAX: usize = 64;
/// The same thing is not looked at again within this.
const REST: Duration = Duration::from_secs(5);
/// So often a node may be wrong within [`DOUBT`].
const WRONG_WORDS_MAX: u32 = 3;
/// Packs that are gone, of which artifacts are looked for at once.
const GONE_MAX: usize = 1_000;
const DOUBT: Duration = Duration::from_secs(600);

/// That something of an artifact is damaged.
#[derive(Debug)]
pub(crate) struct Word {
    /// `None`: the region itself found it.
    pub(crate) node: Option<NodeId>,
    pub(crate) artifact: ArtifactId,
    pub(crate) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum What {
    Pack(PackRef),
    Root,
}

/// Where words go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Words(mpsc::Sender<Word>);

impl Words {
    pub(crate) fn say(&self, word: Word) {
        if let Err(mpsc::error::TrySendError::Full(word)) = self.0.try_send(word) {
            tracing::warn!(?word, "too much is said to be damaged; this waits until it is said again");
        }
    }
}

/// See the module.
pub(crate) struct Mender {
    region: RegionName,
    bucket: Bucket,
    outbox: Arc<Outbox>,
    words: mpsc::Receiver<Word>,
    looked_at: BTreeMap<(ArtifactId, What), Instant>,
    doubted: BTreeMap<NodeId, Doubt>,
    /// Packs that are gone, and the artifact of which that was reported: others may have them, too.
    gone: BTreeMap<PackId, ArtifactId>,
}

struct Doubt {
    wrong_words: u32,
    until: Instant,
}

impl Mender {
    pub(crate) fn new(region: RegionName, bucket: Bucket, outbox: Arc<Outbox>) -> (Self, Words) {
        let (sender, words) = mpsc::channel(QUEUE_MAX);
        let (looked_at, doubted, gone) = Default::default();
        (Self { region, bucket, outbox, words, looked_at, doubted, gone }, Words(sender))
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            // Words first: many packs that are gone cost one walk.
            if !self.gone.is_empty() && (self.words.is_empty() || self.gone.len() >= GONE_MAX) {
                if shutdown.run_until_cancelled(self.report_others(&shutdown)).await.is_none() {
                    return;
                }
                continue;
            }
            let Some(Some(word)) = shutdown.run_until_cancelled(self.words.recv()).await else { return };
            self.forget();
            let thing = (word.artifact, word.what);
            if self.is_doubted(word.node.as_ref()) || self.looked_at.contains_key(&thing) {
                continue;
            }
            let looked = shutdown.run_until_cancelled(self.look(&word, &shutdown)).await;
            match looked {
                Some(Ok(true)) => {}
                Some(Ok(false)) => self.doubt(&word),
                Some(Err(error)) => {
                    tracing::warn!(region = %self.region, ?word, %error, "it cannot be looked at; a node will say it again");
                    continue;
                }
                None => return,
            }
            self.looked_at.insert(thing, Instant::now());
        }
    }

    /// Whether something was wrong with it; then it has been moved away and reported.
    async fn look(&mut self, word: &Word, shutdown: &CancellationToken) -> Result<bool, longshore_s3::Error> {
        let found = match &word.what {
            What::Pack(pack) => self.look_at_pack(pack).await?,
            What::Root => {
                set_root_aside(&self.bucket, &word.artifact).await?.then(|| "its root was not usable".to_owned())
            }
        };
        let Some(found) = found else { return Ok(false) };
        if let What::Pack(pack) = &word.what {
            self.gone.insert(pack.pack, word.artifact);
        }
        tracing::error!(region = %self.region, artifact = %word.artifact, found_by = ?word.node, found, "an artifact is damaged");
        self.report(word.artifact, &found, shutdown).await;
        Ok(true)
    }

    async fn report(&self, artifact: ArtifactId, found: &str, shutdown: &CancellationToken) {
        let reported = ReplicaReported {
            artifact,
            region: self.region.clone(),
            status: ReplicaStatus::Failed,
            packs_done: 0,
            bytes_copied: 0,
            error: Some(format!("in the region's bucket, {found}; it is copied anew")),
        };
        self.outbox.send(vec![ArtifactRequest::from(reported)], shutdown).await;
    }

    /// Every other artifact that has one of the packs that are gone. What cannot be read now is found by the scrubber, or by a node.
    async fn report_others(&mut self, shutdown: &CancellationToken) {
        let gone = std::mem::take(&mut self.gone);
        let packs: BTreeSet<PackId> = gone.keys().copied().collect();
        let mut walk = Walk::new(&self.bucket);
        loop {
            let (artifact, root) = match walk.next().await {
                Ok(Some(artifact)) => (artifact, walk::read(&self.bucket, &artifact).await),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(region = %self.region, %error, "which artifacts share a damaged pack cannot be looked up");
                    return;
                }
            };
            let Ok(Some(Ok(root))) = root else { continue };
            let shared = root.all_packs().into_iter().map(|pack| pack.pack).find(|pack| packs.contains(pack));
            let Some(pack) = shared.filter(|pack| gone.get(pack) != Some(&artifact)) else { continue };
            tracing::error!(region = %self.region, %artifact, %pack, "an artifact shares a damaged pack");
            self.report(artifact, &format!("pack {pack}, which it shares with {}, was damaged", gone[&pack]), shutdown)
                .await;
        }
    }

    async fn look_at_pack(&self, PackRef { pack, bytes }: &PackRef) -> Result<Option<String>, longshore_s3::Error> {
        let held = inspect(&self.bucket, pack, *bytes).await?;
        let how = match &held {
            Held::Right(_) => return Ok(None),
            Held::Gone => "was not there",
            Held::Wrong(_) => match set_aside(&self.bucket, pack, *bytes, &held).await? {
                Held::Right(_) => return Ok(None),
                Held::Gone => "had wrong bytes and was moved to quarantine/",
                Held::Wrong(_) => "had wrong bytes, and other ones at the next reading",
            },
        };
        Ok(Some(format!("pack {pack} {how}")))
    }

    fn is_doubted(&self, node: Option<&NodeId>) -> bool {
        let doubt = node.and_then(|node| self.doubted.get(node));
        doubt.is_some_and(|doubt| doubt.wrong_words >= WRONG_WORDS_MAX)
    }

    fn doubt(&mut self, word: &Word) {
        let Some(node) = &word.node else { return };
        let until = Instant::now() + DOUBT;
        let doubt = self.doubted.entry(node.clone()).or_insert(Doubt { wrong_words: 0, until });
        (doubt.wrong_words, doubt.until) = (doubt.wrong_words + 1, until);
        tracing::warn!(%node, what = ?word.what, wrong_words = doubt.wrong_words, "a node says that this is damaged, which it is not");
    }

    fn forget(&mut self) {
        let now = Instant::now();
        self.looked_at.retain(|_, at| *at + REST > now);
        self.doubted.retain(|_, doubt| doubt.until > now);
    }
}
