//! `longshore node`

use longshore_schemas::{
    Timestamp,
    events::StringMap,
    http::{NodeEvent, NodeEventView, NodeHistoryQuery, NodeHistoryView, NodeLogQuery, NodeServiceView},
};

use super::{Context, nodes::table};
use crate::{
    args::NodeArgs,
    error::Error,
    output::{self, Format},
};

pub(super) async fn run(context: &Context, args: &NodeArgs) -> Result<(), Error> {
    if args.log.is_some() {
        return log(context, args).await;
    }
    let query = NodeHistoryQuery { region: args.region.clone(), limit: Some(args.limit) };
    let view: NodeHistoryView = context.client.get(&["nodes", args.node.as_str()]).query(&query).fetch().await?;
    context.show(&view, |view| text(view, output::now()))
}

/// As it is, for `grep` and `less`.
async fn log(context: &Context, args: &NodeArgs) -> Result<(), Error> {
    let Some(service) = &args.log else { return Ok(()) };
    let query = NodeLogQuery { region: args.region.clone(), bytes: Some(args.bytes) };
    let path = ["nodes", args.node.as_str(), "services", service.as_str(), "log"];
    let response = context.client.get(&path).query(&query).stream().await?;
    let text = response.text().await.map_err(|error| anyhow::Error::new(error.without_url()))?;
    match context.format {
        Format::Json => output::json(&serde_json::json!({ "node": args.node, "service": service, "log": text })),
        Format::Table => output::raw(text.as_bytes()),
    }
}

fn text(view: &NodeHistoryView, now: Timestamp) -> String {
    let NodeHistoryView { node, history, has_more, remembered_since } = view;
    let mut parts = vec![format!("{} is reached at {}; agent {}", node.node, node.host, node.agent_version)];
    if !node.labels.is_empty() {
        parts.push(format!("labels: {}", labels(&node.labels)));
    }
    parts.push(String::new());
    parts.push(table(std::slice::from_ref(node), None, now));
    if !history.is_empty() {
        parts.push(String::new());
        parts.push(output::table(&["when", "what"], history.iter().map(|event| row(event, now)).collect()));
    }
    if *has_more {
        parts.push("and more before that: --limit".to_owned());
    }
    if let Some(since) = remembered_since {
        parts.push(format!("what was more than {} is in the log alone", output::ago(*since, now)));
    }
    parts.join("\n")
}

fn row(NodeEventView { at, event }: &NodeEventView, now: Timestamp) -> Vec<String> {
    let what = match event {
        NodeEvent::Described { zone, rack, host, agent_version, labels: found } => {
            let labels = if found.is_empty() { String::new() } else { format!(", {}", labels(found)) };
            format!("said hello: zone {zone}, rack {rack}, at {host}, agent {agent_version}{labels}")
        }
        NodeEvent::Said(said) => of_service(said),
        NodeEvent::Lost => "lost: its beats stopped".to_owned(),
        NodeEvent::Returned => "returned".to_owned(),
    };
    vec![output::ago(*at, now), what]
}

fn of_service(said: &NodeServiceView) -> String {
    let NodeServiceView { service, version, artifact, status, message, .. } = said;
    let artifact = artifact.map(|artifact| format!(", artifact {}", artifact.short())).unwrap_or_default();
    let message = message.as_deref().map(|message| format!(": {}", output::brief(message))).unwrap_or_default();
    format!("{service} {version} {}{artifact}{message}", output::word(status))
}

fn labels(labels: &StringMap) -> String {
    let texts: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_what_it_runs_and_what_happened_to_it() {
        let version = serde_json::json!({ "revision": 2, "step": 1 });
        let service = serde_json::json!({
            "service": "web", "version": version, "artifact": null, "status": "Failed", "port": 28000,
            "message": "exit status: 3\nit said",
        });
        let view: NodeHistoryView = serde_json::from_value(serde_json::json!({
            "node": "eu-1", "region": "eu", "zone": "eu-a", "rack": "r1", "host": "10.0.0.7", "agent_version": "1",
            "labels": { "disk": "nvme", "gpu": "a100" }, "lost": true, "seen_at": "1970-01-01T00:00:10Z", "services": [service],
            "history": [
                { "at": "1970-01-01T00:00:10Z", "event": "lost" },
                { "at": "1970-01-01T00:00:05Z", "event": "said", "service": "web", "version": version, "artifact": null,
                  "status": "Failed", "port": 28000, "message": "exit status: 3\nit said" },
                { "at": "1970-01-01T00:00:00Z", "event": "described", "zone": "eu-a", "rack": "r1", "host": "10.0.0.7",
                  "agent_version": "1", "labels": { "gpu": "a100" } },
            ],
            "has_more": true, "remembered_since": "1970-01-01T00:00:00Z",
        }))
        .expect("a node");
        let expected = "\
eu-1 is reached at 10.0.0.7; agent 1
labels: disk=nvme, gpu=a100

NODE  REGION  ZONE  RACK  STATE  SERVICE  ARTIFACT  STATUS      PORT   REPORTED  MESSAGE
eu-1  eu      eu-a  r1    lost   web 2.1  -         was failed  28000  20 s ago  exit status: 3…

WHEN      WHAT
20 s ago  lost: its beats stopped
25 s ago  web 2.1 failed: exit status: 3…
30 s ago  said hello: zone eu-a, rack r1, at 10.0.0.7, agent 1, gpu=a100
and more before that: --limit
what was more than 30 s ago is in the log alone";
        assert_eq!(text(&view, Timestamp(30_000)), expected);
    }
}
