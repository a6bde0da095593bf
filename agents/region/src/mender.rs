//! Looks at packs of the region's bucket that a node found damaged, and has them copied anew.
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
//! No node's word is taken: the region looks itself. Looking costs a read, so a node that was wrong several times is
//! not listened to for a while.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use longshore_s3::Bucket;
use longshore_schemas::{
    ArtifactId, NodeId, PackId, RegionName,
    events::{ArtifactRequest, ReplicaReported, ReplicaStatus},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    outbox::Outbox,
    quarantine::{Held, inspect, set_aside},
};

/// Words that wait. More are dropped: whoever needs the pack says it again.
const QUEUE_MAX: usize = 64;
/// A pack is not looked at again within this.
const REST: Duration = Duration::from_secs(5);
/// So often a node may be wrong within [`DOUBT`].
const WRONG_WORDS_MAX: u32 = 3;
const DOUBT: Duration = Duration::from_secs(600);

/// That a pack is damaged.
#[derive(Debug)]
pub(crate) struct Word {
    /// `None`: the region itself found it.
    pub(crate) node: Option<NodeId>,
    pub(crate) artifact: ArtifactId,
    pub(crate) pack: PackId,
    pub(crate) bytes: u64,
}

/// Where words go. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Words(mpsc::Sender<Word>);

impl Words {
    pub(crate) fn say(&self, word: Word) {
        if let Err(mpsc::error::TrySendError::Full(word)) = self.0.try_send(word) {
            tracing::warn!(pack = %word.pack, "too many packs are said to be damaged; this one waits until it is said again");
        }
    }
}

/// See the module.
pub(crate) struct Mender {
    region: RegionName,
    bucket: Bucket,
    outbox: Arc<Outbox>,
    words: mpsc::Receiver<Word>,
    looked_at: BTreeMap<PackId, Instant>,
    doubted: BTreeMap<NodeId, Doubt>,
}

struct Doubt {
    wrong_words: u32,
    until: Instant,
}

impl Mender {
    pub(crate) fn new(region: RegionName, bucket: Bucket, outbox: Arc<Outbox>) -> (Self, Words) {
        let (sender, words) = mpsc::channel(QUEUE_MAX);
        let (looked_at, doubted) = (BTreeMap::new(), BTreeMap::new());
        (Self { region, bucket, outbox, words, looked_at, doubted }, Words(sender))
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        while let Some(Some(word)) = shutdown.run_until_cancelled(self.words.recv()).await {
            self.forget();
            if self.is_doubted(word.node.as_ref()) || self.looked_at.contains_key(&word.pack) {
                continue;
            }
            let looked = shutdown.run_until_cancelled(self.look(&word, &shutdown)).await;
            match looked {
                Some(Ok(true)) => {}
                Some(Ok(false)) => self.doubt(&word),
                Some(Err(error)) => {
                    let pack = word.pack;
                    tracing::warn!(region = %self.region, %pack, %error, "a pack cannot be looked at; a node will say it again");
                    continue;
                }
                None => return,
            }
            self.looked_at.insert(word.pack, Instant::now());
        }
    }

    /// Whether something was wrong with it; then it has been moved away and reported.
    async fn look(&self, word: &Word, shutdown: &CancellationToken) -> Result<bool, longshore_s3::Error> {
        let Word { artifact, pack, bytes, .. } = word;
        let held = inspect(&self.bucket, pack, *bytes).await?;
        let what = match &held {
            Held::Right(_) => return Ok(false),
            Held::Gone => "is not in the region's bucket any more",
            Held::Wrong(_) => match set_aside(&self.bucket, pack, *bytes, &held).await? {
                Held::Right(_) => return Ok(false),
                Held::Gone => "had wrong bytes in the region's bucket and was moved to quarantine/",
                Held::Wrong(_) => "has wrong bytes in the region's bucket, other ones at each reading",
            },
        };
        tracing::error!(region = %self.region, %artifact, %pack, found_by = ?word.node, "a pack {what}; it is copied anew");
        let reported = ReplicaReported {
            artifact: *artifact,
            region: self.region.clone(),
            status: ReplicaStatus::Failed,
            packs_done: 0,
            bytes_copied: 0,
            error: Some(format!("pack {pack} {what}; it is copied anew")),
        };
        self.outbox.send(vec![ArtifactRequest::from(reported)], shutdown).await;
        Ok(true)
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
        tracing::warn!(%node, pack = %word.pack, wrong_words = doubt.wrong_words, "a node says that a pack is damaged, which it is not");
    }

    fn forget(&mut self) {
        let now = Instant::now();
        self.looked_at.retain(|_, at| *at + REST > now);
        self.doubted.retain(|_, doubt| doubt.until > now);
    }
}
