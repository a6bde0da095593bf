//! `longshore log dead-letters`: what no processor could take, and another try.

use longshore_schemas::http::{DeadLetterView, LetterContent, Page, RetryView};

use super::Context;
use crate::{
    args::{DeadLettersCommand, LettersArgs},
    error::Error,
    output,
};

const PATH: &str = "dead-letters";

pub(super) async fn run(context: &Context, command: DeadLettersCommand) -> Result<(), Error> {
    match command {
        DeadLettersCommand::List(args) => list(context, args).await,
        DeadLettersCommand::Show(letter) => show(context, letter.offset).await,
        DeadLettersCommand::Retry(letter) => retry(context, letter.offset).await,
    }
}

async fn list(context: &Context, args: LettersArgs) -> Result<(), Error> {
    let LettersArgs { limit, after } = args;
    let mut query = vec![("limit", limit.to_string())];
    query.extend(after.map(|after| ("after", after)));
    let page: Page<DeadLetterView> = context.client.get(&[PATH]).query(&query).fetch().await?;
    context.show(&page, |page| {
        let rows = page.items.iter().map(|letter| {
            let DeadLetterView { offset, at, topic, partition, record, error, retried, .. } = letter;
            let place = format!("{topic}/{partition}/{record}");
            let retried = retried.as_deref().map_or("-", |_| "yes");
            vec![offset.to_string(), at.to_string(), place, retried.to_owned(), output::brief(error)]
        });
        output::table(&["letter", "time", "record", "retried", "error"], rows.collect())
    })?;
    output::more(page.next.as_ref());
    Ok(())
}

async fn show(context: &Context, offset: u64) -> Result<(), Error> {
    let letter: DeadLetterView = context.client.get(&[PATH, &offset.to_string()]).fetch().await?;
    context.show(&letter, text)
}

fn text(letter: &DeadLetterView) -> String {
    let DeadLetterView { offset, at, topic, partition, record, error, key, bytes, retried, content } = letter;
    let mut lines = vec![
        format!("dead letter {offset}, set aside at {at}"),
        format!("record   {topic}/{partition}/{record}, key {key:?}, {bytes} bytes"),
        format!("error    {error}"),
    ];
    lines.extend(retried.as_ref().map(|retried| format!("retried  {retried}")));
    let Some(LetterContent { headers, kind, request, hex }) = content else { return lines.join("\n") };
    lines.extend(headers.iter().map(|(name, value)| format!("header   {name}: {value}")));
    if let (Some(kind), Some(request)) = (kind, request) {
        lines.push(format!("holds    {kind}"));
        lines.push(serde_json::to_string_pretty(request).unwrap_or_default());
    }
    if let Some(hex) = hex {
        let shown = hex.len() as u64 / 2;
        let all = if shown < *bytes { format!("the first {shown} of {bytes} bytes") } else { "all of it".to_owned() };
        lines.push(format!("holds    no request that can be read; {all}, in hexadecimal digits:"));
        lines.extend(hex.as_bytes().chunks(64).map(|row| String::from_utf8_lossy(row).into_owned()));
    }
    lines.join("\n")
}

async fn retry(context: &Context, offset: u64) -> Result<(), Error> {
    let retried: RetryView = context.client.post(&[PATH, &offset.to_string(), "retry"]).fetch().await?;
    context.show(&retried, |RetryView { retried, position, outcome, .. }| match (retried, position) {
        (false, _) => format!("dead letter {offset} was {outcome} before, and is not tried a second time"),
        (true, Some(position)) => format!("{position}: {outcome}"),
        (true, None) => outcome.clone(),
    })
}

#[cfg(test)]
mod tests {
    use longshore_schemas::Timestamp;

    use super::*;

    #[test]
    fn a_letter_shows_what_it_holds() {
        let content = LetterContent {
            headers: [("auth".to_owned(), "1 control 0 0".to_owned())].into(),
            kind: None,
            request: None,
            hex: Some("00ff".to_owned()),
        };
        let letter = DeadLetterView {
            offset: 3,
            at: Timestamp(0),
            topic: "goal-requests".to_owned(),
            partition: 1,
            record: 17,
            error: "undecodable".to_owned(),
            key: "web".to_owned(),
            bytes: 2,
            retried: None,
            content: Some(content),
        };
        let shown = text(&letter);
        for line in ["goal-requests/1/17, key \"web\", 2 bytes", "header   auth: 1 control 0 0", "all of it", "\n00ff"]
        {
            assert!(shown.contains(line), "{shown}");
        }
    }
}
