//! A main bucket that does not do what a worker asks: what is published is complete and right, or the build says why not.

mod common;

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use common::Lab;
use longshore_artifact::{ArtifactRoot, pack_key};
use longshore_proxy::{Call, Fault};
use longshore_schemas::{PackId, events::FailureReason, http::FinishBody};

const SCRIPT: &str = "mkdir out && cp data out";

fn root(body: FinishBody) -> ArtifactRoot {
    match body {
        FinishBody::Succeeded { root, .. } => serde_json::from_value(root).expect("a root"),
        FinishBody::Failed { reason, message } => panic!("failed: {reason:?}: {message}"),
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    noise
}

async fn assert_whole(lab: &Lab, root: &ArtifactRoot) {
    for pack in root.all_packs() {
        let content = lab.server.bucket.get(&pack_key(&pack.pack), pack.bytes).await.expect("stored");
        assert_eq!(PackId::of(&content), pack.pack, "its bytes are right");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_puts_off_is_published_whole() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[("data", &noise(12 << 20))]);
    let faults = [
        Fault::Answer(503, "SlowDown"),
        Fault::Answer(503, "ServiceUnavailable"),
        Fault::Answer(500, "InternalError"),
        Fault::Cut,
        Fault::AnswerLost,
    ];
    let seen = Mutex::new(BTreeSet::new());
    let proxy = lab
        .plan(move |call: &Call| {
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let is_first = call.path.contains("/packs/") && seen.insert(call.path.clone());
            if is_first { faults[seen.len() % faults.len()] } else { Fault::None }
        })
        .await;
    let root = root(lab.build(lab.spec(&commit, SCRIPT)).await);
    assert_whole(&lab, &root).await;
    let happened: u64 = proxy.happened().values().sum();
    assert_eq!(happened, root.all_packs().len() as u64, "each pack met one fault");
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_refuses_fails_the_build_with_what_to_do() {
    let mut lab = Lab::start().await;
    let commit = lab.commit(&[("data", &noise(1 << 20))]);
    let table = [
        (403, "SignatureDoesNotMatch", "s3.secret_key"),
        (404, "NoSuchBucket", "s3.main_bucket"),
        (403, "QuotaExceeded", "quota is used up"),
        (301, "PermanentRedirect", "s3.region"),
    ];
    for (status, code, says) in table {
        let _proxy = lab.plan(move |_: &Call| Fault::Answer(status, code)).await;
        let FinishBody::Failed { reason, message } = lab.build(lab.spec(&commit, SCRIPT)).await else {
            panic!("{code}: nothing was stored")
        };
        assert_eq!(reason, FailureReason::UploadFailed, "{message}");
        assert!(message.contains(code) && message.contains(says), "{message}");
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_that_were_collected_meanwhile_are_published_once_more() {
    let mut lab = Lab::start().await;
    let first = lab.commit(&[("data", &noise(9 << 20)), ("more", b"1")]);
    let second = lab.commit(&[("more", b"2")]);
    let script = "mkdir out && cp data more out";
    let old = root(lab.build(lab.spec(&first, script)).await);
    // A pack of the base, which the second build refers to and does not upload.
    lab.server.events().collects = Some(old.packs[0].pack);
    let job = lab.queue(lab.spec(&second, script), Some(&old)).await;
    let new = root(lab.finished(&job).await);
    assert_whole(&lab, &new).await;
    assert_ne!(new.artifact, old.artifact);
    lab.end().await;
}
