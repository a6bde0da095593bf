//! Accepting that the log has lost requests.

use axum::{Json as AsJson, extract::State};
use longshore_schemas::http::{AcceptLossBody, AcceptedLossView};

use crate::{
    NotAccepted,
    access::Holder,
    extract::{App, Json, Params},
    problem::{Answer, Failure},
};

/// `POST /v1/partitions/{processor}/{partition}/accept-loss`: exactly what is lost, or the answer says what is.
pub(crate) async fn accept(
    State(shared): App,
    Holder(holder): Holder,
    Params((processor, partition)): Params<(String, u32)>,
    Json(body): Json<AcceptLossBody>,
) -> Answer<AsJson<AcceptedLossView>> {
    let AcceptLossBody { from, to } = body;
    let loss = AcceptedLossView { processor, partition, from, to, by: holder.subject };
    match shared.checks.accept_loss(&loss).await {
        Ok(()) => Ok(AsJson(loss)),
        Err(NotAccepted::NoPartition(reason)) => Err(Failure::not_found(reason)),
        Err(NotAccepted::Other(reason)) => Err(Failure::conflict(reason)),
        Err(NotAccepted::Unavailable(reason)) => Err(Failure::unavailable(reason)),
    }
}
