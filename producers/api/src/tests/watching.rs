//! Streams: facts from an offset on, and logs as they grow.

use std::time::Duration;

use axum::{
    body::{Body, BodyDataStream},
    http::Method,
};
use futures::StreamExt;
use longshore_log::{Log, Record};
use longshore_schemas::{
    codec,
    events::{
        BuildFact, BuildLog, Cause, Consumed, Event, Fact, JobCanceled, LogSegmentStored, Processed, Request, Trigger,
    },
    http::{JobStatus, Role},
    topics,
};
use serde_json::Value;
use tower::ServiceExt;

use super::{
    toy::LONG_AGO,
    world::{PATIENCE, World, request},
};
use crate::{Limits, extract::new_id};

/// What comes of a stream, bit by bit.
struct Stream {
    body: BodyDataStream,
    text: String,
}

impl World {
    async fn stream(&self, path: &str, last_event_id: Option<&str>) -> Stream {
        let mut sent = request(Method::GET, path, self.token(Role::Viewer));
        if let Some(id) = last_event_id {
            sent = sent.header("last-event-id", id);
        }
        let response = self.router().oneshot(sent.body(Body::empty()).expect("valid")).await.expect("infallible");
        assert_eq!(response.status(), 200);
        Stream { body: response.into_body().into_data_stream(), text: String::new() }
    }

    async fn fact(&self, sequence: u64, event: impl Into<BuildFact>) {
        let event: BuildFact = event.into();
        let consumed = Consumed {
            topic: "build-requests".to_owned(),
            partition: 0,
            offset: sequence,
            request: new_id(),
            report: None,
        };
        let cause = Cause { index: 0, count: 1, trigger: Trigger::Consumed(consumed) };
        let key = event.key();
        let fact = Fact { sequence, at: LONG_AGO, actor: "ada".to_owned(), trace: None, cause, event };
        let record = Record::new(key, codec::encode(&fact).expect("encoded"));
        self.log.append(topics::BUILDS.name, vec![record]).await.expect("appended");
    }

    async fn canceled(&self, number: u64) {
        self.fact(number, JobCanceled { job: format!("default-{number}").parse().expect("a job"), attempt: 0 }).await;
    }

    /// Stores a segment and says so, as a worker's call does.
    async fn segment(&self, job: &str, attempt: u32, index: u32, text: &'static str) {
        let job = job.parse().expect("a job");
        let object = crate::job_log::segment_key(&job, attempt, index);
        self.bucket.put(&object, text.into()).await.expect("stored");
        let event = BuildLog::from(LogSegmentStored { job, attempt, index, bytes: text.len() as u32, object });
        let (id, key) = (new_id(), event.key());
        let request = Request { id, at: LONG_AGO, actor: "w".to_owned(), trace: None, report: None, event };
        let record = Record::new(key, codec::encode(&request).expect("encoded"));
        self.log.append(topics::BUILD_LOGS.name, vec![record]).await.expect("appended");
    }
}

impl Stream {
    async fn until(&mut self, holds: &str) -> &str {
        let reading = async {
            while !self.text.contains(holds) {
                let piece = self.body.next().await.expect("the stream goes on").expect("read");
                self.text.push_str(&String::from_utf8_lossy(&piece));
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{holds:?} comes"));
        &self.text
    }

    async fn into_whole(mut self) -> String {
        let reading = async {
            while let Some(piece) = self.body.next().await {
                self.text.push_str(&String::from_utf8_lossy(&piece.expect("read")));
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("it ends");
        self.text
    }

    /// The last id that was sent.
    fn id(&self) -> String {
        let mut ids = self.text.lines().filter_map(|line| line.strip_prefix("id: "));
        ids.next_back().expect("an id").to_owned()
    }
}

#[tokio::test]
async fn facts_are_streamed_and_resumed() {
    let world = World::new().await;
    world.canceled(1).await;
    world.fact(2, Processed { next_offset: 2, now: LONG_AGO, refusals: Vec::new() }).await;
    let mut stream = world.stream("/v1/facts/builds?from=beginning", None).await;
    stream.until("default-1").await;
    world.canceled(3).await;
    let text = stream.until("default-3").await;
    assert!(!text.contains("Processed"), "{text}");
    let data = text.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
    let data: Value = serde_json::from_str(data).expect("JSON");
    let partition = topics::partition_of(b"default", topics::BUILDS.partitions);
    assert_eq!((&data["partition"], &data["offset"]), (&partition.into(), &0.into()));
    assert_eq!(data["event"]["JobCanceled"]["job"], "default-1");
    assert!(text.contains("event: JobCanceled\n"), "{text}");

    let id = stream.id();
    drop(stream);
    world.canceled(4).await;
    let mut resumed = world.stream("/v1/facts/builds?from=beginning", Some(&id)).await;
    let text = resumed.until("default-4").await;
    assert!(!text.contains("default-1") && !text.contains("default-3"), "{text}");

    let mut all = world.stream("/v1/facts/builds?at=2020-01-01T00:00:00Z&all=true", None).await;
    assert!(all.until("default-4").await.contains("event: Processed"));
}

#[tokio::test]
async fn a_stream_without_a_fact_yet_can_be_resumed() {
    let world = World::new().await;
    world.canceled(1).await;
    let mut stream = world.stream("/v1/facts/builds", None).await;
    stream.until("id: ").await;
    let id = stream.id();
    world.canceled(2).await;
    let mut resumed = world.stream("/v1/facts/builds", Some(&id)).await;
    assert!(!resumed.until("default-2").await.contains("default-1"));
}

#[tokio::test]
async fn streams_are_bounded_and_given_back() {
    let world = World::with(Limits { streams_max: 1, ..Limits::default() }).await;
    let stream = world.stream("/v1/facts/builds", None).await;
    world.get("/v1/facts/builds").await.expect_problem(503, "the limit api.streams of 1 streams is reached");
    drop(stream);
    let returned = async {
        while world.api.shared.gates.streams.used() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, returned).await.expect("the stream is given back");
}

#[tokio::test]
async fn a_log_is_followed_over_attempts_to_its_end() {
    let world = World::new().await;
    world.running("default-1", 1);
    world.segment("default-1", 1, 0, "one\n").await;
    assert_eq!(world.get("/v1/jobs/default-1/log").await.expect_status(200).text(), "one\n");
    let mut stream = world.stream("/v1/jobs/default-1/log?follow=true", None).await;
    stream.until("one\n").await;
    world.segment("default-1", 1, 1, "two\n").await;
    stream.until("two\n").await;
    world.running("default-1", 2);
    world.segment("default-1", 2, 0, "again\n").await;
    stream.until("again\n").await;
    world.segment("default-1", 2, 1, "end\n").await;
    world.toy.state().jobs.values_mut().for_each(|job| job.status = JobStatus::Succeeded);
    let text = stream.into_whole().await;
    assert_eq!(text, "one\ntwo\n\n[longshore] attempt 2 follows\nagain\nend\n");
    assert_eq!(world.get("/v1/jobs/default-1/log?attempt=1&follow=true").await.text(), "one\ntwo\n");
    world.get("/v1/jobs/default-1/log?attempt=3").await.expect_problem(404, "no attempt 3");
}

#[tokio::test]
async fn stopping_ends_streams() {
    let world = World::new().await;
    let mut stream = world.stream("/v1/facts/builds", None).await;
    stream.until("id: ").await;
    world.api.shared.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), stream.into_whole()).await.expect("it ends");
}
