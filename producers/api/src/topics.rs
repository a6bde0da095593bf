//! The log as its operators see it: what every partition holds and who processes it, and whether it is whole.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use longshore_log::{Size, TopicPartition};
use longshore_schemas::{
    http::{Page, PartitionView, ProcessingView},
    topics,
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    Shared,
    extract::{App, Query},
    problem::Answer,
    streams::{self, Gone, Sender},
};

/// How often a stream without news shows that it lives.
const BEAT: Duration = Duration::from_secs(10);
/// How long a partition may take to say how large it is.
const SIZE_TIME: Duration = Duration::from_secs(2);
/// Partitions that are asked at once.
const ASKED_AT_ONCE: usize = 8;

/// `GET /v1/topics`
pub(crate) async fn list(State(shared): App) -> Answer<Json<Page<PartitionView>>> {
    let mut processing: BTreeMap<_, _> = shared.read.processing().await.into_iter().collect();
    let mut leaders = BTreeMap::new();
    for topic in topics::ALL {
        let processor = processing.get(&(topic.name, 0)).map(|of| of.processor.clone());
        if let Some(processor) = processor {
            let owners = owners(&shared, &processor, topic.name).await;
            leaders.extend(owners.into_iter().map(|(partition, owner)| ((topic.name, partition), owner)));
        }
    }
    let partitions = topics::ALL.iter().flat_map(|topic| (0..topic.partitions).map(|number| (topic.name, number)));
    let views = partitions.map(|of| {
        let (owner, processing) = (leaders.remove(&of), processing.remove(&of));
        view(&shared, of, processing.map(|of| ProcessingView { owner, ..of }))
    });
    let views: Vec<_> = views.collect();
    let items = stream::iter(views).buffered(ASKED_AT_ONCE).try_collect().await?;
    Ok(Json(Page { items, next: None }))
}

async fn view(
    shared: &Shared,
    (topic, partition): (&str, u32),
    processing: Option<ProcessingView>,
) -> Answer<PartitionView> {
    let of = TopicPartition::new(topic, partition);
    let (start, end) = (shared.log.start_offset(&of).await?, shared.log.end_offset(&of).await?);
    let size = size(shared, &of, start, end).await;
    let (bytes, bytes_estimated) = (size.map(|size| size.bytes), size.is_some_and(|size| !size.exact));
    let (topic, records) = (topic.to_owned(), end.saturating_sub(start));
    Ok(PartitionView { topic, partition, start, end, records, bytes, bytes_estimated, processing })
}

/// As with the owners: what the log does not say is left out.
async fn size(shared: &Shared, of: &TopicPartition, start: u64, end: u64) -> Option<Size> {
    let asked = longshore_log::size(&*shared.log, of, start..end);
    match tokio::time::timeout(SIZE_TIME, asked).await {
        Ok(Ok(size)) => Some(size),
        Ok(Err(error)) => {
            tracing::warn!(partition = %of, %error, "the log does not say how large a partition is");
            None
        }
        Err(_) => None,
    }
}

/// A group's members; a log that does not answer is no reason to show nothing.
async fn owners(shared: &Shared, processor: &str, topic: &str) -> BTreeMap<u32, String> {
    shared.log.owners(processor, topic).await.unwrap_or_else(|error| {
        tracing::warn!(processor, %error, "the log does not say who leads");
        BTreeMap::new()
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VerifyQuery {
    /// Read by the access check.
    #[serde(rename = "access_token")]
    _access_token: Option<String>,
}

/// `GET /v1/verify`: reads the whole log, which takes its time; so the answer is a stream of one event, `Report` or `Failed`.
pub(crate) async fn verify(State(shared): App, Query(_): Query<VerifyQuery>) -> Answer {
    let (sender, response) = streams::open(&shared, "text/event-stream")?;
    let stop = shared.stop.clone();
    tokio::spawn(async move { stop.run_until_cancelled(report(&shared, &sender)).await });
    Ok(response)
}

async fn report(shared: &Arc<Shared>, sender: &Sender) -> Result<(), Gone> {
    let verifying = shared.read.verify();
    tokio::pin!(verifying);
    let (kind, data) = loop {
        tokio::select! {
            verified = &mut verifying => break match verified {
                Ok(report) => ("Report", report),
                Err(error) => ("Failed", json!({ "error": error.to_string() })),
            },
            () = tokio::time::sleep(BEAT) => sender.send(": reading\n\n").await?,
            () = sender.closed() => return Err(Gone),
        }
    };
    sender.send(format!("event: {kind}\ndata: {data}\n\n")).await
}
