//! `longshore log topics`: what every partition holds, and how far its requests are processed.

use longshore_schemas::http::{Page, PartitionView};

use super::Context;
use crate::{error::Error, output};

pub(super) async fn run(context: &Context) -> Result<(), Error> {
    let page: Page<PartitionView> = context.client.get(&["topics"]).fetch().await?;
    context.show(&page.items, |partitions| text(partitions))
}

fn text(partitions: &[PartitionView]) -> String {
    let rows = partitions.iter().map(|view| {
        let dash = || "-".to_owned();
        let processing = view.processing.as_ref();
        let role = processing.map_or_else(dash, |of| match &of.error {
            Some(error) => format!("{} {}: {}", of.processor, of.role, output::brief(error)),
            None => format!("{} {}", of.processor, of.role),
        });
        vec![
            format!("{}/{}", view.topic, view.partition),
            view.start.to_string(),
            view.end.to_string(),
            view.records.to_string(),
            view.bytes.map_or_else(dash, |bytes| {
                format!("{}{}", if view.bytes_estimated { "≈" } else { "" }, output::size(bytes))
            }),
            processing.map_or_else(dash, |of| of.processed.to_string()),
            processing.map_or_else(dash, |of| of.lag.to_string()),
            role,
            processing.and_then(|of| of.owner.clone()).unwrap_or_else(dash),
        ]
    });
    output::table(
        &["partition", "start", "end", "records", "size", "processed", "lag", "here", "leader"],
        rows.collect(),
    )
}

#[cfg(test)]
mod tests {
    use longshore_schemas::http::ProcessingView;

    use super::*;

    #[test]
    fn who_processes_a_topic_and_how_far_it_is_stands_beside_it() {
        let facts = PartitionView {
            topic: "builds".to_owned(),
            partition: 0,
            start: 0,
            end: 9,
            records: 9,
            bytes: Some(12_800),
            bytes_estimated: true,
            processing: None,
        };
        let processing = ProcessingView {
            processor: "queue".to_owned(),
            role: "leading".to_owned(),
            owner: Some("control-2 at 10.0.0.2".to_owned()),
            processed: 5,
            lag: 2,
            error: None,
        };
        let topic = "build-requests".to_owned();
        let (bytes, processing) = (None, Some(processing));
        let requests = PartitionView { topic, start: 3, end: 7, records: 4, bytes, processing, ..facts.clone() };
        let shown = text(&[requests, facts]);
        let rows: Vec<Vec<&str>> = shown.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            rows[0],
            ["build-requests/0", "3", "7", "4", "-", "5", "2", "queue", "leading", "control-2", "at", "10.0.0.2"]
        );
        assert_eq!(rows[1], ["builds/0", "0", "9", "9", "≈12.5", "KiB", "-", "-", "-", "-"]);
    }
}
