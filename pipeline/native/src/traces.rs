//! OTLP traces → span; see `pipeline/otlp/traces.py`.

use crate::avro;
use crate::request::{Encoded, Messages, Reason, Refusal, Request, SPAN};
use crate::values::{Attributes, Limits, is_id};
use crate::wire::{Counted, DEPTH, Fault, Fields, Part, Text, Wire, bits, inside, text};

const SAMPLED: u32 = 1; // W3C trace flags
const ERROR: i32 = 2; // StatusCode
const TRACES: Messages = Messages {
    request: Part { children: bits(&[1]), shell: 0, counted: Counted::Resources },
    resource: Part { children: bits(&[2]), shell: bits(&[1, 3]), counted: Counted::Scopes },
    scope: Part { children: bits(&[2]), shell: bits(&[1, 3]), counted: Counted::Records },
    resource_name: "ResourceSpans",
    scope_name: "ScopeSpans",
};

#[derive(Default)]
struct Span<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    parent_span_id: &'a [u8],
    trace_state: Text<'a>,
    flags: u32,
    name: Text<'a>,
    kind: i32,
    start_time: i64,
    end_time: i64,
    dropped_attributes: u32,
    dropped_events: u32,
    dropped_links: u32,
    status_code: i32,
    status_message: Text<'a>,
}

#[derive(Default)]
struct Event<'a> {
    time: i64,
    name: Text<'a>,
    dropped: u32,
}

#[derive(Default)]
struct Link<'a> {
    trace_id: &'a [u8],
    span_id: &'a [u8],
    trace_state: Text<'a>,
    dropped: u32,
    flags: u32,
}

/// Attributes, events and links as sent.
#[derive(Default)]
struct Raws<'a> {
    attributes: Vec<&'a [u8]>,
    events: Vec<&'a [u8]>,
    links: Vec<&'a [u8]>,
}

#[inline]
fn read<'a>(data: &'a [u8], raws: &mut Raws<'a>) -> Result<Span<'a>, Fault> {
    raws.attributes.clear();
    raws.events.clear();
    raws.links.clear();
    let mut span = Span::default();
    let mut fields = Fields::new(data, DEPTH);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(data)) => span.trace_id = data,
            (2, Wire::Bytes(data)) => span.span_id = data,
            (3, Wire::Bytes(data)) => span.trace_state = text(data)?,
            (4, Wire::Bytes(data)) => span.parent_span_id = data,
            (5, Wire::Bytes(data)) => span.name = text(data)?,
            (6, Wire::Varint(n)) => span.kind = n as i32,
            (7, Wire::Fixed64(n)) => span.start_time = n as i64,
            (8, Wire::Fixed64(n)) => span.end_time = n as i64,
            (9, Wire::Bytes(raw)) => raws.attributes.push(raw),
            (10, Wire::Varint(n)) => span.dropped_attributes = n as u32,
            (11, Wire::Bytes(raw)) => {
                read_event(raw, |_| {})?; // what is malformed is so before anything is taken
                raws.events.push(raw);
            }
            (12, Wire::Varint(n)) => span.dropped_events = n as u32,
            (13, Wire::Bytes(raw)) => {
                read_link(raw, |_| {})?;
                raws.links.push(raw);
            }
            (14, Wire::Varint(n)) => span.dropped_links = n as u32,
            (15, Wire::Bytes(data)) => {
                let mut fields = Fields::new(data, inside(DEPTH)?);
                while let Some(field) = fields.next()? {
                    match field {
                        (2, Wire::Bytes(data)) => span.status_message = text(data)?,
                        (3, Wire::Varint(n)) => span.status_code = n as i32,
                        _ => {}
                    }
                }
            }
            (16, Wire::Fixed32(n)) => span.flags = n,
            _ => {}
        }
    }
    Ok(span)
}

fn read_event<'a>(data: &'a [u8], mut attribute: impl FnMut(&'a [u8])) -> Result<Event<'a>, Fault> {
    let mut event = Event::default();
    let mut fields = Fields::new(data, inside(DEPTH)?);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Fixed64(n)) => event.time = n as i64,
            (2, Wire::Bytes(data)) => event.name = text(data)?,
            (3, Wire::Bytes(raw)) => attribute(raw),
            (4, Wire::Varint(n)) => event.dropped = n as u32,
            _ => {}
        }
    }
    Ok(event)
}

fn read_link<'a>(data: &'a [u8], mut attribute: impl FnMut(&'a [u8])) -> Result<Link<'a>, Fault> {
    let mut link = Link::default();
    let mut fields = Fields::new(data, inside(DEPTH)?);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(data)) => link.trace_id = data,
            (2, Wire::Bytes(data)) => link.span_id = data,
            (3, Wire::Bytes(data)) => link.trace_state = text(data)?,
            (4, Wire::Bytes(raw)) => attribute(raw),
            (5, Wire::Varint(n)) => link.dropped = n as u32,
            (6, Wire::Fixed32(n)) => link.flags = n,
            _ => {}
        }
    }
    Ok(link)
}

pub fn encode(mut request: Request) -> Result<Encoded, Refusal> {
    let threshold = request.rules.span_threshold;
    let (mut raws, mut attributes) = (Raws::default(), Attributes::default());
    request.scopes(&TRACES, |request, shared, scope_spans| {
        let Some(shared) = shared else {
            request.refuse(scope_spans.children.len(), Reason::RecordTooLarge);
            return Ok(());
        };
        let partitions = request.partitions();
        request.records(scope_spans, partitions, |request, data| {
            let span = read(data, &mut raws).map_err(|fault| fault.of("Span"))?;
            if !is_id(span.trace_id, 16) {
                request.refuse(1, Reason::InvalidTraceId);
                return Ok(());
            }
            if !is_id(span.span_id, 8) {
                request.refuse(1, Reason::InvalidSpanId);
                return Ok(());
            }
            let looks_unsampled = span.flags & SAMPLED == 0 && span.status_code != ERROR;
            if threshold > 0 && looks_unsampled && is_shed(span.trace_id, span.trace_state.as_str(), threshold) {
                if let Some(shed) = request.shed.get_mut(SPAN) {
                    *shed += 1;
                }
                return Ok(());
            }
            let partition = request.partition(span.trace_id);
            request.add(&shared.fields, (partition, span.start_time), |limits, out| {
                out.extend_from_slice(span.trace_id);
                out.extend_from_slice(span.span_id);
                avro::blob(out, span.parent_span_id);
                avro::blob(out, span.trace_state.as_bytes());
                avro::long(out, i64::from(span.flags));
                avro::blob(out, span.name.as_bytes());
                avro::long(out, i64::from(span.kind));
                avro::long(out, span.start_time);
                avro::long(out, span.end_time);
                let over = attributes.read(&raws.attributes, limits)?;
                attributes.write(out);
                avro::long(out, i64::from(span.dropped_attributes) + over as i64);
                avro::long(out, i64::from(span.status_code));
                avro::blob(out, span.status_message.as_bytes());
                parts(out, &raws.events, |out, raw| write_event(out, raw, &mut attributes, limits))?;
                avro::long(out, i64::from(span.dropped_events));
                parts(out, &raws.links, |out, raw| write_link(out, raw, &mut attributes, limits))?;
                avro::long(out, i64::from(span.dropped_links));
                Ok(())
            })
        })
    })?;
    Ok(request.finish())
}

/// An array of events or links.
#[inline]
fn parts<'a>(
    out: &mut Vec<u8>,
    raws: &[&'a [u8]],
    mut write: impl FnMut(&mut Vec<u8>, &'a [u8]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    if !raws.is_empty() {
        avro::size(out, raws.len());
        for raw in raws {
            write(out, raw)?;
        }
    }
    out.push(avro::NOTHING);
    Ok(())
}

fn write_event<'a>(
    out: &mut Vec<u8>,
    raw: &'a [u8],
    attributes: &mut Attributes<'a>,
    limits: &mut Limits,
) -> Result<(), Refusal> {
    let mut raws = Vec::new();
    let event = read_event(raw, |attribute| raws.push(attribute)).map_err(|fault| fault.of("Span"))?;
    avro::long(out, event.time);
    avro::blob(out, event.name.as_bytes());
    let over = attributes.read(&raws, limits)?;
    attributes.write(out);
    avro::long(out, i64::from(event.dropped) + over as i64);
    Ok(())
}

fn write_link<'a>(
    out: &mut Vec<u8>,
    raw: &'a [u8],
    attributes: &mut Attributes<'a>,
    limits: &mut Limits,
) -> Result<(), Refusal> {
    let mut raws = Vec::new();
    let link = read_link(raw, |attribute| raws.push(attribute)).map_err(|fault| fault.of("Span"))?;
    avro::blob(out, link.trace_id);
    avro::blob(out, link.span_id);
    avro::blob(out, link.trace_state.as_bytes());
    let over = attributes.read(&raws, limits)?;
    attributes.write(out);
    avro::long(out, i64::from(link.dropped) + over as i64);
    avro::long(out, i64::from(link.flags));
    Ok(())
}

/// Whether a trace falls below the threshold, unless a sampler has chosen it before; see the reference for the source.
fn is_shed(trace_id: &[u8], trace_state: &str, threshold: u64) -> bool {
    let members = || opentelemetry_state(trace_state).unwrap_or_default().split(';');
    if opentelemetry_state(trace_state).is_some() && members().any(|member| member.starts_with("th:")) {
        return false;
    }
    let randomness = members().find_map(random_value).unwrap_or_else(|| {
        let mut low = [0; 8];
        if let (Some(place), Some(bytes)) = (low.get_mut(1..), trace_id.get(9..16)) {
            place.copy_from_slice(bytes);
        }
        u64::from_be_bytes(low)
    });
    randomness < threshold
}

/// The first member of a tracestate whose key is `ot`, without the key: `(?:^|,)\s*ot=([^,]*)`.
fn opentelemetry_state(trace_state: &str) -> Option<&str> {
    trace_state.split(',').find_map(|member| member.trim_start_matches(is_space).strip_prefix("ot="))
}

/// What Python's `\s` matches: Unicode's white space, and four separators that are not.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn random_value(member: &str) -> Option<u64> {
    let digits = member.strip_prefix("rv:")?;
    let valid = digits.len() == 14 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if valid { u64::from_str_radix(digits, 16).ok() } else { None }
}
