//! Packs on their way to the bucket: the sink of the publisher.
//!
//! ```text
//! put ──(pack, size)──▶ asker: one call for all that wait ──▶ POST …/uploads
//!  │ ◀──presigned PUT─────┘
//!  ├──▶ the answer says that the pack is there already: done
//!  └──▶ PUT; refused because expired: ask again; another fault: wait, then again
//! ```
//!
//! A pack that is there has the same bytes, since its name is their hash: an attempt that was lost before left it, or another job
//! made the same. 412 means that somebody was faster. So a publish that was interrupted goes on where it was.
//!
//! What is stored is told with a later call, or with one of its own, each second: regions copy it while the build still runs.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use longshore_artifact::{PackSink, SinkError};
use longshore_s3_answers::{Complaint, sorted, told};
use longshore_schemas::{
    PackId,
    http::{PackSize, UPLOADS_MAX, Upload, UploadsAnswer, UploadsBody},
};
use longshore_service::{metrics::Counters, retry::Backoff};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{client, wait_after};

/// How long one pack is tried, over all its failures.
const PATIENCE: Duration = Duration::from_secs(180);
/// For one PUT of up to 8 MiB.
const PUT_TIMEOUT: Duration = Duration::from_secs(120);
/// Stored packs are told this often.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How much of a bucket's answer is read, in bytes, and shown.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
const SHOWN_CHARS_MAX: usize = 300;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the server gives no place to upload to")]
    NoPlace(#[source] Arc<client::Error>),
    #[error("the server answered without a place for this pack")]
    Unanswered,
    #[error("the main bucket answered {status} {code}: {}", if complaint.advice().is_empty() { text.as_str() } else { complaint.advice() })]
    Refused { status: u16, code: String, text: String, complaint: Complaint },
    #[error("cannot reach the bucket")]
    Unreachable(#[source] reqwest::Error),
    #[error("the uploads have ended")]
    Ended,
}

impl Error {
    fn is_transient(&self) -> bool {
        match self {
            Self::NoPlace(error) => error.is_transient(),
            // Denied: the signature may have expired, and the next one may not. Taken: someone stores the same pack right now. A disk that
            // is full may be freed.
            Self::Refused { complaint, .. } => {
                complaint.is_passing()
                    || matches!(
                        complaint,
                        Complaint::Denied | Complaint::Expired | Complaint::Taken | Complaint::NoSpace
                    )
            }
            Self::Unreachable(_) => true,
            Self::Unanswered | Self::Ended => false,
        }
    }
}

/// Who says where packs are uploaded to: the API, by one of its routes.
#[async_trait::async_trait]
pub trait Places: Send + Sync + 'static {
    async fn uploads(&self, body: &UploadsBody) -> Result<UploadsAnswer, client::Error>;
}

/// Where to upload a pack; nowhere if it is there.
type Place = Option<Upload>;
type Wish = (PackSize, oneshot::Sender<Result<Place, Error>>);

static PACKS: LazyLock<Counters<1>> = LazyLock::new(|| {
    Counters::new("longshore_worker_packs", "Packs of outputs, by whether they were there", ["outcome"])
});
static BYTES: LazyLock<Counters<1>> =
    LazyLock::new(|| Counters::new("longshore_worker_pack_bytes", "Bytes of these packs", ["outcome"]));

/// How a pack came to be in the bucket.
#[derive(Clone, Copy)]
enum Outcome {
    Uploaded,
    WasThere,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Uploaded => "uploaded",
            Self::WasThere => "was_there",
        }
    }
}

/// What became of the packs of one publish.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    pub uploaded_bytes: u64,
    pub there_bytes: u64,
}

/// The sink. It ends once nobody has it any more.
pub struct Uploads {
    http: reqwest::Client,
    wishes: mpsc::Sender<Wish>,
    stored: mpsc::Sender<PackSize>,
    totals: Mutex<Totals>,
}

impl Uploads {
    /// `http` sends to presigned URLs: without a token.
    pub fn start(places: impl Places, http: reqwest::Client) -> Self {
        let (wishes, queue) = mpsc::channel(UPLOADS_MAX);
        let (stored, news) = mpsc::channel(UPLOADS_MAX);
        tokio::spawn(ask(places, queue, news));
        Self { http, wishes, stored, totals: Mutex::default() }
    }

    pub fn totals(&self) -> Totals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, outcome: Outcome, bytes: u64) {
        PACKS.count([outcome.name()], 1);
        BYTES.count([outcome.name()], bytes);
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        *match outcome {
            Outcome::Uploaded => &mut totals.uploaded_bytes,
            Outcome::WasThere => &mut totals.there_bytes,
        } += bytes;
    }

    async fn try_put(&self, pack: PackId, bytes: &Bytes) -> Result<Outcome, Error> {
        let (sender, answer) = oneshot::channel();
        let wish = (PackSize { pack, bytes: bytes.len() as u64 }, sender);
        self.wishes.send(wish).await.map_err(|_| Error::Ended)?;
        let Some(upload) = answer.await.map_err(|_| Error::Ended)?? else { return Ok(Outcome::WasThere) };
        let put = self.http.put(&upload.url).timeout(PUT_TIMEOUT).body(bytes.clone());
        let response =
            with_headers(put, &upload.headers).send().await.map_err(|e| Error::Unreachable(e.without_url()))?;
        let status = response.status();
        if status.is_success() {
            return Ok(Outcome::Uploaded);
        }
        if status == reqwest::StatusCode::PRECONDITION_FAILED {
            return Ok(Outcome::WasThere);
        }
        Err(refused(status.as_u16(), &body(response).await))
    }
}

/// The beginning of an answer.
async fn body(mut response: reqwest::Response) -> String {
    let mut body = Vec::new();
    while let Ok(Some(piece)) = response.chunk().await {
        body.extend_from_slice(&piece);
        if body.len() >= ANSWER_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&body).into_owned()
}

/// What a bucket says when it does not take a pack.
fn refused(status: u16, answer: &str) -> Error {
    let (code, message) = told(answer);
    let text = if message.is_empty() { answer.trim() } else { message };
    let text = text.chars().take(SHOWN_CHARS_MAX).collect();
    Error::Refused { status, code: code.to_owned(), text, complaint: sorted(code, status) }
}

#[async_trait::async_trait]
impl PackSink for Uploads {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        let give_up = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            match self.try_put(pack, &bytes).await {
                Ok(outcome) => {
                    self.count(outcome, bytes.len() as u64);
                    // If too many wait to be told, this one is not: that costs time only.
                    let _ = self.stored.try_send(PackSize { pack, bytes: bytes.len() as u64 });
                    return Ok(());
                }
                Err(error) if error.is_transient() && Instant::now() < give_up => {
                    tracing::warn!(%pack, %error, failures = backoff.failures() + 1, "a pack was not stored, it is tried again");
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(wait_after(&mut backoff)).await;
        }
    }
}

/// Adds the headers that were signed. Host and length are set by the client, to what was signed.
pub(crate) fn with_headers(mut put: reqwest::RequestBuilder, headers: &[(String, String)]) -> reqwest::RequestBuilder {
    for (name, value) in headers {
        if !name.eq_ignore_ascii_case("host") && !name.eq_ignore_ascii_case("content-length") {
            put = put.header(name, value);
        }
    }
    put
}

/// Asks for all that wait at once, and tells what is stored. Ends with the sink.
async fn ask(places: impl Places, mut queue: mpsc::Receiver<Wish>, mut news: mpsc::Receiver<PackSize>) {
    let mut wishes = Vec::with_capacity(UPLOADS_MAX);
    let mut stored = Vec::new();
    let mut tell_at = Instant::now();
    loop {
        tokio::select! {
            count = queue.recv_many(&mut wishes, UPLOADS_MAX) => if count == 0 { return },
            Some(pack) = news.recv(), if stored.len() < UPLOADS_MAX => {
                stored.push(pack);
                continue;
            }
            () = tokio::time::sleep_until(tell_at), if !stored.is_empty() => {}
        }
        let packs = wishes.iter().map(|(pack, _)| pack.clone()).collect();
        let mut told = Vec::new();
        if tell_at <= Instant::now() {
            told.append(&mut stored);
            tell_at = Instant::now() + TELL_INTERVAL;
        }
        // What was told and not heard is not told again: a hint may be lost.
        let mut answer = places.uploads(&UploadsBody { packs, stored: told }).await.map_err(Arc::new);
        for (size, sender) in wishes.drain(..) {
            let upload = match &mut answer {
                Ok(answer) if answer.already_stored.contains(&size.pack) => Ok(None),
                Ok(answer) => take(&mut answer.uploads, size.pack).map(Some).ok_or(Error::Unanswered),
                Err(error) => Err(Error::NoPlace(error.clone())),
            };
            // A sink that went away needs no answer.
            let _ = sender.send(upload);
        }
    }
}

fn take(uploads: &mut Vec<Upload>, pack: PackId) -> Option<Upload> {
    let at = uploads.iter().position(|upload| upload.pack == pack)?;
    Some(uploads.swap_remove(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_bucket_refuses_says_what_to_do_and_whether_it_is_tried_again() {
        let xml =
            |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>");
        let table = [
            (503, xml("SlowDown"), true, "asks to slow down"),
            (500, xml("InternalError"), true, "has a fault"),
            (503, "<html>busy</html>".to_owned(), true, "has a fault"),
            (403, xml("AccessDenied"), true, "the bucket's policy"),
            (403, xml("SignatureDoesNotMatch"), false, "s3.secret_key"),
            (403, xml("InvalidAccessKeyId"), false, "s3.access_key"),
            (404, xml("NoSuchBucket"), false, "create it, or correct s3.main_bucket"),
            (301, xml("PermanentRedirect"), false, "correct s3.region"),
            (403, xml("RequestTimeTooSkewed"), false, "clock is wrong"),
            (403, xml("QuotaExceeded"), false, "quota is used up"),
            (507, xml("InsufficientStorage"), true, "disk is full"),
            (400, xml("KMS.DisabledException"), false, "s3.kms_key"),
            (400, xml("NewAtThisService"), false, "400 NewAtThisService: as told"),
            (418, "no XML".to_owned(), false, "no XML"),
        ];
        for (status, answer, is_transient, says) in table {
            let error = refused(status, &answer);
            assert_eq!(error.is_transient(), is_transient, "{error}");
            assert!(error.to_string().contains(says), "{error} says {says:?}");
        }
    }
}
