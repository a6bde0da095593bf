//! The log as its operators see it: what every partition holds and who processes it, and whether it is whole.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use longshore_log::TopicPartition;
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

/// `GET /v1/topics`
pub(crate) async fn list(State(shared): App) -> Answer<Json<Page<PartitionView>>> {
    let mut processing: BTreeMap<_, _> = shared.read.processing().await.into_iter().collect();
    let mut items = Vec::new();
    for topic in topics::ALL {
        let processor = processing.get(&(topic.name, 0)).map(|of| of.processor.clone());
        let mut owners = match processor {
            Some(processor) => owners(&shared, &processor, topic.name).await,
            None => BTreeMap::new(),
        };
        for partition in 0..topic.partitions {
            let of = TopicPartition::new(topic.name, partition);
            let (start, end) = (shared.log.start_offset(&of).await?, shared.log.end_offset(&of).await?);
            let processing = processing.remove(&(topic.name, partition));
            let owner = owners.remove(&partition);
            let processing = processing.map(|of| ProcessingView { owner, ..of });
            let (topic, records) = (topic.name.to_owned(), end.saturating_sub(start));
            items.push(PartitionView { topic, partition, start, end, records, processing });
        }
    }
    Ok(Json(Page { items, next: None }))
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
