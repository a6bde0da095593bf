//! What operators see of the log, and what they do about its dead letters.

use axum::http::Method;
use bytes::Bytes;
use longshore_log::{Log, ReadLimit, Record, StoredRecord, TopicPartition};
use longshore_schemas::{
    auth::{AUTH, KnownKeys, Signed, Speaker},
    codec,
    events::{BuildRequest, BuildRequested, CancelRequested, DeadLetter, Event, GoalRequest, PauseRequested, Request},
    http::{DeadLetterView, Page, PartitionView, RetryView, Role},
    letters, topics,
};
use serde_json::{Value, json};

use super::{
    toy::LONG_AGO,
    world::{Answered, World, build},
};

impl World {
    async fn admin(&self, path: &str) -> Answered {
        self.call(Method::GET, path, self.token(Role::Admin), &Value::Null).await
    }

    async fn append(&self, topic: &str, record: Record) -> StoredRecord {
        let positions = self.log.append(topic, vec![record]).await.expect("appended");
        let of = positions[0].source.clone();
        self.all(&of).await.pop().expect("it is there")
    }

    async fn all(&self, of: &TopicPartition) -> Vec<StoredRecord> {
        let end = self.log.end_offset(of).await.expect("an end");
        let mut reader = self.log.reader(vec![(of.clone(), 0)]).expect("a reader");
        let mut records = Vec::new();
        while reader.position(of).is_some_and(|position| position < end) {
            records.extend(reader.read(ReadLimit::default()).await.expect("read"));
        }
        records
    }

    /// Sets a record aside, as a processor does.
    async fn dead(&self, record: &StoredRecord, error: &str) -> u64 {
        let value = record.record.value.as_deref().unwrap_or_default().to_vec();
        let letter = DeadLetter {
            topic: record.source.topic.to_string(),
            partition: record.source.partition,
            offset: record.offset,
            error: error.to_owned(),
            key: record.record.key.to_vec(),
            value,
        };
        let headers = record.record.headers.iter();
        let headers = headers.map(|(name, value)| (format!("{}{name}", letters::ORIGINAL), value.clone())).collect();
        let letter = Record { headers, ..Record::new(letter.topic.clone(), codec::encode(&letter).expect("encoded")) };
        self.append(topics::DEAD_LETTERS.name, letter).await.offset
    }
}

fn request<E: Event>(id: &str, event: impl Into<E>) -> Record
where
    Request<E>: codec::Message,
{
    let event = event.into();
    let id = id.parse().expect("an id");
    let request = Request { id, at: LONG_AGO, actor: "ada".to_owned(), trace: None, report: None, event };
    Record::new(request.event.key(), codec::encode(&request).expect("encoded"))
}

fn requested(id: &str) -> Record {
    let build = serde_json::from_value(build()["build"].clone()).expect("a build");
    request::<BuildRequest>(id, BuildRequested { queue: "default".parse().expect("a queue"), build })
}

fn paused(id: &str) -> Record {
    request::<GoalRequest>(id, PauseRequested { service: "web".parse().expect("a service") })
}

#[tokio::test]
async fn what_the_api_writes_is_signed() {
    let world = World::new().await;
    world.post("/v1/services/web/pause", Role::Deployer, &json!({})).await;
    let partition = topics::partition_of(b"web", topics::GOAL_REQUESTS.partitions);
    let records = world.all(&TopicPartition::new(topics::GOAL_REQUESTS.name, partition)).await;
    let [StoredRecord { record, .. }] = records.as_slice() else { panic!("one request: {records:?}") };
    let known = KnownKeys::new([world.api.shared.request_keys.own().clone()]);
    let auth = record.headers.iter().filter(|(name, _)| name == AUTH).map(|(_, value)| value.as_ref());
    let value = record.value.as_deref().expect("a request");
    let signed = |topic| Signed { topic, key: &record.key, value };
    known.check(Speaker::Control, None, auth.clone(), signed(topics::GOAL_REQUESTS.name)).expect("believed");
    known.check(Speaker::Control, None, auth, signed(topics::GOALS.name)).expect_err("not elsewhere");
}

#[tokio::test]
async fn every_partition_is_listed_with_who_processes_it() {
    let world = World::new().await;
    world.append(topics::BUILD_REQUESTS.name, requested("r-1")).await;
    let page: Page<PartitionView> = world.get("/v1/topics").await.expect_status(200).json();
    let partitions: u32 = topics::ALL.iter().map(|topic| topic.partitions).sum();
    assert_eq!(page.items.len(), partitions as usize);
    let with_records: Vec<_> = page.items.iter().filter(|view| view.records > 0).collect();
    let partition = topics::partition_of(b"default", topics::BUILD_REQUESTS.partitions);
    let [view] = with_records.as_slice() else { panic!("one record: {with_records:?}") };
    assert_eq!((view.topic.as_str(), view.partition, view.start, view.end), ("build-requests", partition, 0, 1));
    assert_eq!((view.bytes, view.bytes_estimated), (Some(requested("r-1").bytes() as u64), false));
    let empty = page.items.iter().find(|view| view.records == 0).expect("others are empty");
    assert_eq!(empty.bytes, Some(0));
    let processing = view.processing.as_ref().expect("the toy says that it leads");
    assert_eq!((processing.role.as_str(), processing.lag), ("leading", 1));
}

#[tokio::test]
async fn any_topic_can_be_read_by_admins_with_filters() {
    let world = World::new().await;
    world.append(topics::BUILD_REQUESTS.name, requested("r-1").with_header("trace", "t")).await;
    world.append(topics::BUILD_REQUESTS.name, requested("r-2")).await;
    let cancel = CancelRequested { job: "default-1".parse().expect("a job") };
    world.append(topics::BUILD_REQUESTS.name, request::<BuildRequest>("r-3", cancel)).await;
    world.append(topics::BUILD_REQUESTS.name, Record::new("default", Bytes::from_static(b"\x01\xff"))).await;
    world.append(topics::GOAL_STATE.name, Record::tombstone("eu/web")).await;
    let read = async |topic: &str, query: &str| {
        let path = format!("/v1/log/{topic}?from=beginning&until_end=true{query}");
        let text = world.admin(&path).await.expect_status(200).text();
        assert!(text.contains("event: End\n"), "{text}");
        let events = text.split("\n\n").filter_map(|event| {
            let kind = event.lines().find_map(|line| line.strip_prefix("event: "))?;
            let data = event.lines().find_map(|line| line.strip_prefix("data: "))?;
            let data: Value = serde_json::from_str(data).expect("JSON");
            (kind != "End").then(|| (kind.to_owned(), data))
        });
        events.collect::<Vec<_>>()
    };
    let kinds = |events: &[(String, Value)]| events.iter().map(|(kind, _)| kind.clone()).collect::<Vec<_>>();

    let all = read("build-requests", "").await;
    assert_eq!(kinds(&all), ["BuildRequested", "BuildRequested", "CancelRequested", "Undecodable"]);
    let first = &all[0].1;
    assert_eq!((&first["id"], &first["key"], &first["offset"]), (&json!("r-1"), &json!("default"), &json!(0)));
    assert_eq!((&first["headers"]["trace"], &first["topic"]), (&json!("t"), &json!("build-requests")));
    assert!(first["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{first}");
    assert_eq!(all[3].1["hex"], "01ff");
    assert_eq!(kinds(&read("build-requests", "&type=CancelRequested").await), ["CancelRequested"]);
    let one = read("build-requests", "&where=%7B%22id%22%3A%22r-2%22%7D").await;
    assert_eq!(one.iter().map(|(_, data)| data["id"].clone()).collect::<Vec<_>>(), ["r-2"]);
    assert_eq!(kinds(&read("all", "&type=Tombstone,CancelRequested").await).len(), 2, "of two topics");
    assert!(read("build-requests", "&at=2100-01-01T00:00:00Z").await.is_empty(), "nothing is so new");

    world.get("/v1/log/build-requests").await.expect_problem(403, "role admin");
    world.admin("/v1/log/nothing").await.expect_problem(404, "build-requests, builds");
    world.admin("/v1/log/all?from=p0:1").await.expect_problem(422, "from");
    world.admin("/v1/log/builds?from=p9:1").await.expect_problem(422, "4 partitions, so no p9");
    world.admin("/v1/log/builds?where=x").await.expect_problem(422, "where:");
}

#[tokio::test]
async fn dead_letters_are_listed_newest_first_and_shown() {
    let world = World::new().await;
    let garbage = world.append(topics::GOAL_REQUESTS.name, Record::new("web", "no request")).await;
    let forged = world.append(topics::GOAL_REQUESTS.name, paused("forged").with_header(AUTH, "1 control 0 0")).await;
    for number in 0..1_100 {
        let letter = if number == 3 { &forged } else { &garbage };
        assert_eq!(world.dead(letter, &format!("error {number}")).await, number);
    }
    let mut after = String::new();
    let mut seen = Vec::new();
    loop {
        let path = format!("/v1/dead-letters?limit=200{after}");
        let page: Page<DeadLetterView> = world.admin(&path).await.expect_status(200).json();
        seen.extend(page.items.iter().map(|letter| letter.offset));
        let Some(next) = page.next else { break };
        after = format!("&after={next}");
    }
    assert_eq!(seen, (0..1_100).rev().collect::<Vec<_>>());

    let shown: DeadLetterView = world.admin("/v1/dead-letters/3").await.expect_status(200).json();
    assert_eq!((shown.topic.as_str(), shown.record, shown.error.as_str()), ("goal-requests", 1, "error 3"));
    let content = shown.content.expect("content");
    assert_eq!(content.headers.get(AUTH).map(String::as_str), Some("1 control 0 0"));
    assert_eq!(content.kind.as_deref(), Some("PauseRequested"));
    assert_eq!(content.request.expect("decoded")["id"], "forged");
    let shown: DeadLetterView = world.admin("/v1/dead-letters/4").await.expect_status(200).json();
    assert_eq!(shown.content.expect("content").hex.as_deref(), Some("6e6f2072657175657374"));
    world.admin("/v1/dead-letters/1100").await.expect_problem(404, "no dead letter at offset 1100");
    world.admin("/v1/dead-letters/x").await.expect_problem(422, "");
    world.admin("/v1/dead-letters?limit=0").await.expect_problem(422, "limit");
    world.admin("/v1/dead-letters?after=x").await.expect_problem(422, "after");
}

#[tokio::test]
async fn a_dead_letter_is_tried_again_once_and_as_it_was() {
    let world = World::new().await;
    let record = world.append(topics::BUILD_REQUESTS.name, requested("r-1").with_header(AUTH, "some")).await;
    let letter = world.dead(&record, "a bug that was mended").await;
    let retry =
        async |letter: u64| world.post(&format!("/v1/dead-letters/{letter}/retry"), Role::Admin, &json!({})).await;
    let first: RetryView = retry(letter).await.expect_status(200).json();
    assert_eq!((first.retried, first.outcome.as_str()), (true, "processed"));
    let again = world.all(&record.source).await.pop().expect("it is there again");
    assert_eq!(first.position, Some(format!("{}/{}", record.source, again.offset)));
    assert_eq!((&again.record.key, &again.record.value), (&record.record.key, &record.record.value));
    let headers = [(AUTH, "some"), (letters::RETRY_OF, "0")];
    assert_eq!(again.record.headers, headers.map(|(name, value)| (name.to_owned(), Bytes::from(value))));

    let before = world.records().await;
    let second: RetryView = retry(letter).await.expect_status(200).json();
    assert_eq!((second.retried, second.position.as_deref()), (false, None));
    assert!(second.outcome.contains("tried again by some-admin"), "{}", second.outcome);
    assert_eq!(world.records().await, before, "nothing was written");
    let page: Page<DeadLetterView> = world.admin("/v1/dead-letters").await.json();
    let [only] = page.items.as_slice() else { panic!("the mark is no letter: {:?}", page.items) };
    assert!(only.retried.is_some());
    retry(letter + 1).await.expect_problem(404, "no dead letter");

    // Its record has expired: the letter has it whole, with its headers; or only a part.
    let mut gone = record.clone();
    gone.offset = 1_000;
    let whole = world.dead(&gone, "decide failed").await;
    let third: RetryView = retry(whole).await.expect_status(200).json();
    assert!(third.retried);
    let again = world.all(&record.source).await.pop().expect("it is there again");
    assert_eq!(again.record.headers[0], (AUTH.to_owned(), Bytes::from("some")));
    let cut = world.dead(&gone, "decide failed (only the first 524288 of 600000 bytes are here)").await;
    retry(cut).await.expect_problem(409, "only a part");
    // A letter that someone made up writes no fact.
    let mut fact = record.clone();
    fact.source = TopicPartition::new(topics::BUILDS.name, 0);
    let made_up = world.dead(&fact, "undecodable").await;
    retry(made_up).await.expect_problem(409, "builds is not tried again");
    let path = format!("/v1/dead-letters/{letter}/retry");
    world.post(&path, Role::Deployer, &json!({})).await.expect_problem(403, "role admin");
}

#[tokio::test]
async fn a_check_that_cannot_be_made_says_so() {
    let world = World::new().await;
    let text = world.admin("/v1/verify").await.expect_status(200).text();
    assert!(text.contains("event: Failed\n") && text.contains("cannot be compared"), "{text}");
}
