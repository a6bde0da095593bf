//! One call on its way to the server, and its answer on the way back.

use std::{io, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::{self, HeaderMap},
};

use crate::{Fault, Shared};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// An error ends the connection without an answer.
pub(crate) async fn pass(shared: Arc<Shared>, call: Request<Incoming>) -> io::Result<Response<Body>> {
    let (number, fault) = shared.fault(call.method().as_str(), call.uri().path());
    match fault {
        Fault::Cut => return Err(cut()),
        Fault::Delay(time) => tokio::time::sleep(time).await,
        Fault::Answer(status, code) => return answer(status, code),
        _ => {}
    }
    let answer = send(&shared, call, fault, number).await?;
    if fault == Fault::AnswerLost {
        return Err(cut());
    }
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = end_to_end(answer.headers());
    }
    let body = match fault {
        Fault::CutBody | Fault::Truncate | Fault::FlipAnswer => {
            let whole = answer.bytes().await.map_err(io::Error::other)?;
            let body = bent(whole, fault, number);
            if let (Fault::Truncate, Some(headers)) = (fault, response.headers_mut())
                && headers.contains_key(header::CONTENT_LENGTH)
            {
                headers.insert(header::CONTENT_LENGTH, body.len().into());
            }
            let end = (fault == Fault::CutBody).then(cut);
            stream::iter([Ok(body)].into_iter().chain(end.map(Err))).boxed()
        }
        _ => answer.bytes_stream().map_err(io::Error::other).boxed(),
    };
    let paced = body.and_then(move |piece| {
        let shared = shared.clone();
        async move {
            shared.from_server.wait(piece.len()).await;
            Ok(Frame::data(piece))
        }
    });
    response.body(StreamBody::new(paced).boxed_unsync()).map_err(io::Error::other)
}

async fn send(
    shared: &Arc<Shared>,
    call: Request<Incoming>,
    fault: Fault,
    number: u64,
) -> io::Result<reqwest::Response> {
    let url = format!("{}{}", shared.upstream, call.uri());
    let (head, body) = call.into_parts();
    let request = shared.client.request(head.method, url).headers(end_to_end(&head.headers));
    let request = match fault {
        _ if hyper::body::Body::is_end_stream(&body) => request,
        Fault::FlipCall => {
            let whole = body.collect().await.map_err(io::Error::other)?.to_bytes();
            request.body(bent(whole, fault, number))
        }
        _ => {
            let (shared, path) = (shared.clone(), head.uri.path().to_owned());
            let frames = BodyStream::new(body).map(|frame| frame.map_err(io::Error::other));
            let pieces = frames.try_filter_map(move |frame| {
                let (shared, path) = (shared.clone(), path.clone());
                async move {
                    let Ok(piece) = frame.into_data() else { return Ok(None) };
                    shared.to_server.wait(piece.len()).await;
                    shared.note_bytes(&path);
                    Ok(Some(piece))
                }
            });
            request.body(reqwest::Body::wrap_stream(pieces))
        }
    };
    request.send().await.map_err(io::Error::other)
}

/// Without what is between two neighbours only.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::EXPECT] {
        headers.remove(name);
    }
    headers
}

/// The body with this fault in it, where the call's number says.
fn bent(whole: Bytes, fault: Fault, number: u64) -> Bytes {
    match fault {
        Fault::CutBody | Fault::Truncate => whole.slice(..whole.len() / 2),
        Fault::FlipAnswer | Fault::FlipCall if !whole.is_empty() => {
            let mut bytes = BytesMut::from(&*whole);
            let at = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % bytes.len() as u64;
            let at = usize::try_from(at).unwrap_or(0);
            bytes[at] ^= 1 << (number % 8);
            bytes.freeze()
        }
        _ => whole,
    }
}

fn answer(status: u16, code: &str) -> io::Result<Response<Body>> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as planned</Message></Error>");
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
    let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/xml");
    // As S3 says where a bucket is that is asked for elsewhere.
    let answer = if status == 301 { answer.header("x-amz-bucket-region", "elsewhere-1") } else { answer };
    answer.body(body).map_err(io::Error::other)
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "as planned")
}
