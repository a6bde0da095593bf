//! Who the region is, whom it lets in, and who becomes a node: the files of its authority and of tokens, read again and again.
//!
//! A file that cannot be read, or holds nonsense, changes nothing: what was read before stays in force, and the log says so.

use std::{
    path::PathBuf,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use longshore_identity::{
    Authority, Request, Tls,
    files::{AuthorityFiles, Content},
};
use longshore_s3::Bucket;
use longshore_schemas::{NodeId, RegionName, http::Role, stream::FromRegion};
use longshore_service::{durable, metrics::Counters, now, tokens::Tokens};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// In the region's bucket: what became of tokens that are good for one node.
const ENROLMENTS: &str = "enrolments/";
const ENROLMENT_BYTES_MAX: u64 = 1024;
/// Until a node may try again to whom nothing can be said now.
const RETRY_SECONDS: u32 = 60;

static CERTIFIED: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_region_certificates", "Certificates of nodes, by what for", ["why"]));

static FILE_ERRORS: LazyLock<Counters<0>> = LazyLock::new(|| {
    Counters::new("longshore_region_file_errors", "Looks, one a second, at files of the region that are of no use", [])
});

/// Why somebody gets no certificate, and when trying again may help.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    pub(crate) retry_seconds: Option<u32>,
}

impl Refusal {
    pub(crate) fn never(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_seconds: None }
    }

    pub(crate) fn later(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_seconds: Some(RETRY_SECONDS) }
    }
}

pub(crate) struct Identity {
    region: RegionName,
    files: AuthorityFiles,
    tokens_file: PathBuf,
    bucket: Bucket,
    tls: Arc<Tls>,
    held: Mutex<Held>,
}

struct Held {
    content: Content,
    authority: Arc<Authority>,
    tokens_content: Option<Vec<u8>>,
    tokens: Arc<Tokens>,
    /// What was last said of files that are of no use, so as not to say it every few seconds.
    complaint: String,
}

/// For whom a token that is good for one node was used.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Enrolment {
    node: NodeId,
    /// Its public key, in hexadecimal.
    key: String,
}

impl Identity {
    /// Without files that are valid, the region does not start.
    pub(crate) fn open(
        region: &RegionName,
        files: AuthorityFiles,
        tokens_file: PathBuf,
        bucket: Bucket,
    ) -> Result<Self, Error> {
        let content = files.content()?;
        let (authority, trust) = files.read(&content)?;
        let tls = Tls::new(Some(authority.own_credentials(now())?), trust)?;
        let tokens_content = durable::read(&tokens_file)?;
        let tokens = Arc::new(Tokens::of_file(&tokens_file, tokens_content.as_deref())?);
        let held = Held { content, authority: Arc::new(authority), tokens_content, tokens, complaint: String::new() };
        Ok(Self { region: region.clone(), files, tokens_file, bucket, tls, held: Mutex::new(held) })
    }

    pub(crate) fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the files, and renews what the region shows.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
            let identity = self.clone();
            let looked = tokio::task::spawn_blocking(move || identity.look()).await;
            match looked {
                Ok(complaints) => self.complain(&complaints),
                Err(error) => tracing::error!(%error, "looking at the region's files failed"),
            }
        }
    }

    fn complain(&self, complaints: &[Error]) {
        let text: Vec<String> = complaints.iter().map(|error| longshore_service::chain(error)).collect();
        FILE_ERRORS.count([], u64::from(!complaints.is_empty()));
        let (text, mut held) = (text.join("; "), self.held());
        if !text.is_empty() && held.complaint != text {
            tracing::error!(error = text, "files of the region are of no use; what was read before stays in force");
        }
        held.complaint = text;
    }

    /// Each file for itself: that one is of no use keeps nobody from being revoked by another.
    fn look(&self) -> Vec<Error> {
        let looks = [self.look_at_own(), self.look_at_tokens(), self.look_at_authority()];
        looks.into_iter().filter_map(Result::err).collect()
    }

    /// What is shown must not run out, whatever the files say.
    fn look_at_own(&self) -> Result<(), Error> {
        if self.tls.credentials().is_none_or(|own| own.is_due(now())) {
            let authority = self.held().authority.clone();
            self.tls.set(Some(authority.own_credentials(now())?), self.tls.trust())?;
        }
        Ok(())
    }

    fn look_at_tokens(&self) -> Result<(), Error> {
        let content = durable::read(&self.tokens_file)?;
        if content != self.held().tokens_content {
            let tokens = Arc::new(Tokens::of_file(&self.tokens_file, content.as_deref())?);
            let mut held = self.held();
            (held.tokens, held.tokens_content) = (tokens, content);
        }
        Ok(())
    }

    fn look_at_authority(&self) -> Result<(), Error> {
        let last = self.held().content.clone();
        let content = self.files.content_after(&last)?;
        if content != last {
            let (authority, trust) = self.files.read(&content)?;
            let own = authority.own_credentials(now())?;
            self.tls.set(Some(own), trust)?;
            let mut held = self.held();
            (held.authority, held.content) = (Arc::new(authority), content);
            tracing::info!(region = %self.region, "the region's authority or its list of revoked nodes has changed");
        }
        Ok(())
    }

    /// A new machine's certificate. That no other node of this name is there is for the caller to know.
    pub(crate) async fn enrol(&self, token: &str, node: &NodeId, request: &str) -> Result<String, Refusal> {
        let request = requested(request)?;
        self.expect_not_revoked(node)?;
        let tokens = self.held().tokens.clone();
        let Some(record) = tokens.find(token).filter(|record| record.role == Role::Node) else {
            let how =
                "the enrolment token is not known here: give the node a token of the role node of this installation";
            // It may be so new that the region has not read of it yet.
            return Err(Refusal::later(how));
        };
        if let Some(enrols) = &record.enrols {
            enrols.check(&self.region, node, now()).map_err(Refusal::never)?;
            if enrols.once {
                self.use_up(&record.hash.to_hex(), node, &request).await?;
            }
        }
        let certificate = self.certify(&request, node, "enrol")?;
        tracing::info!(%node, by = record.subject, "node enrolled");
        Ok(certificate)
    }

    /// A token that is good for one node stays good for that one and its key, for its answer may have been lost.
    async fn use_up(&self, token: &str, node: &NodeId, request: &Request) -> Result<(), Refusal> {
        let own = Enrolment { node: node.clone(), key: request.key_id() };
        let key = format!("{ENROLMENTS}{token}");
        let trouble = |error: &dyn std::fmt::Display| {
            Refusal::later(format!("it cannot be seen whether the enrolment token was used before: {error}"))
        };
        let json = serde_json::to_vec(&own).map_err(|error| trouble(&error))?;
        match self.bucket.put_if_absent(&key, Bytes::from(json)).await {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => return Err(trouble(&error)),
        }
        let used = match self.bucket.get(&key, ENROLMENT_BYTES_MAX).await {
            Ok(bytes) => serde_json::from_slice::<Enrolment>(&bytes).map_err(|error| trouble(&error))?,
            Err(error) => return Err(trouble(&error)),
        };
        if used == own {
            return Ok(());
        }
        Err(Refusal::never(format!(
            "the enrolment token was good for one node, and {} has used it: give this one another",
            used.node
        )))
    }

    /// The next certificate of a node whose last one ran out while it was away.
    pub(crate) fn restore(&self, certificate: &str, request: &str) -> Result<String, Refusal> {
        let request = requested(request)?;
        let node = self.tls.trust().former_node(certificate, request.public_key(), now());
        let node = node.map_err(|error| Refusal::never(format!("{error}: enrol the node anew, with a token")))?;
        let certificate = self.certify(&request, &node, "restore")?;
        tracing::info!(%node, "node is back after its certificate ran out");
        Ok(certificate)
    }

    /// The next certificate of a node that is connected.
    pub(crate) fn renew(&self, node: &NodeId, request: &str) -> Result<String, Refusal> {
        let request = requested(request)?;
        self.certify(&request, node, "renew")
    }

    fn certify(&self, request: &Request, node: &NodeId, why: &'static str) -> Result<String, Refusal> {
        self.expect_not_revoked(node)?;
        let authority = self.held().authority.clone();
        let certificate = authority.certify(request, node, now()).map_err(|error| Refusal::later(error.to_string()))?;
        CERTIFIED.count([why], 1);
        Ok(certificate)
    }

    fn expect_not_revoked(&self, node: &NodeId) -> Result<(), Refusal> {
        if self.tls.trust().is_revoked(node) {
            return Err(Refusal::later(format!("node {node} is revoked in region {}", self.region)));
        }
        Ok(())
    }

    /// What nodes are told.
    pub(crate) fn trust(&self) -> FromRegion {
        let trust = self.tls.trust();
        FromRegion::Trust { authorities: trust.pem().to_owned(), revoked: trust.revoked().clone() }
    }
}

fn requested(pem: &str) -> Result<Request, Refusal> {
    Request::from_pem(pem).map_err(|error| Refusal::never(error.to_string()))
}
