//! `longshore log accept-loss`

use longshore_schemas::http::{AcceptLossBody, AcceptedLossView};

use super::Context;
use crate::{args::AcceptLossArgs, error::Error};

/// The server refuses all but what is lost, so saying it twice does no harm.
pub(super) async fn accept(context: &Context, args: &AcceptLossArgs) -> Result<(), Error> {
    let AcceptLossArgs { processor, partition, from, to } = args;
    let path = ["partitions", processor, &partition.to_string(), "accept-loss"];
    let call = context.client.post(&path).json(&AcceptLossBody { from: *from, to: *to });
    let accepted: AcceptedLossView = call.fetch().await?;
    context.show(&accepted, |loss| {
        format!(
            "{}/{} goes on with request {}; that those before it from {} on are lost was accepted by {}",
            loss.processor, loss.partition, loss.to, loss.from, loss.by
        )
    })
}
