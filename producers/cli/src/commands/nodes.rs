//! `longshore nodes`

use longshore_schemas::{
    Timestamp,
    http::{NodeQuery, NodeServiceView, NodeView, Page},
};

use super::Context;
use crate::{args::NodesArgs, error::Error, output};

pub(super) async fn list(context: &Context, args: NodesArgs) -> Result<(), Error> {
    let query = NodeQuery { region: args.region, service: args.service, limit: Some(args.limit), after: None };
    let page: Page<NodeView> = context.client.get(&["nodes"]).query(&query).fetch().await?;
    context.show(&page, |page| table(&page.items, output::now()))
}

fn table(nodes: &[NodeView], now: Timestamp) -> String {
    if nodes.is_empty() {
        return "no nodes".to_owned();
    }
    let row = |node: &NodeView| {
        let services: Vec<_> = node.services.iter().map(service).collect();
        vec![
            node.node.to_string(),
            node.region.to_string(),
            node.zone.to_string(),
            node.rack.to_string(),
            if node.lost { "lost" } else { "here" }.to_owned(),
            output::ago(node.seen_at, now),
            if services.is_empty() { "-".to_owned() } else { services.join(", ") },
        ]
    };
    output::table(&["node", "region", "zone", "rack", "state", "seen", "services"], nodes.iter().map(row).collect())
}

fn service(view: &NodeServiceView) -> String {
    let artifact = view.artifact.map(|artifact| format!(" {}", artifact.short())).unwrap_or_default();
    let status = format!("{:?}", view.status).to_lowercase();
    let port = view.port.map(|port| format!(" :{port}")).unwrap_or_default();
    let message = view.message.as_deref().map(|text| format!(" ({})", output::brief(text))).unwrap_or_default();
    format!("{} {}{artifact} {status}{port}{message}", view.service, view.version)
}
