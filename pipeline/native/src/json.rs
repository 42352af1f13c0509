//! OTLP/JSON → the same request in protobuf, where it is plain; see `pipeline/otlp/json.py`.
//!
//! What is not plain is left to the reference: what it refuses, and in which words, and what few clients send (numbers
//! with a point where integers stand, doubles as text, half a surrogate pair where nobody reads it, a key twice).

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::varint;

const MAX_DEPTH: usize = 90; // of objects and arrays: safely below the reference's
const MAX_NUMBER: usize = 300; // characters
const LENGTH_BYTES: usize = 5; // of a length that is written before it is known
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// Keys of OTLP before 0.9: where they mean what they did, the reference refuses them.
const REMOVED: [&str; 8] =
    ["labels", "intGauge", "intSum", "intHistogram", "doubleGauge", "doubleSum", "doubleHistogram", "doubleSummary"];

/// A message's fields.
pub struct Message(&'static [Field]);

struct Field {
    name: &'static str,
    number: u32,
    repeated: bool,
    kind: Kind,
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, repeated: false, kind }
}

const fn many(name: &'static str, number: u32, kind: Kind) -> Field {
    Field { name, number, repeated: true, kind }
}

enum Kind {
    Text,
    Base64,
    Hex,
    Bool,
    Double,
    Int32,
    Uint32,
    Fixed32,
    Int64,
    Uint64,
    Fixed64,
    Sfixed64,
    Sint32,
    Message(&'static Message),
}

/// The request as protobuf bytes; None where the reference has to look at it.
pub fn to_protobuf(signal: &str, body: &[u8], max_values: usize) -> Option<Vec<u8>> {
    let request = match signal {
        "logs" => &EXPORT_LOGS_SERVICE_REQUEST,
        "metrics" => &EXPORT_METRICS_SERVICE_REQUEST,
        "traces" => &EXPORT_TRACE_SERVICE_REQUEST,
        _ => return None,
    };
    let values = body.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > max_values {
        return None;
    }
    let mut reader = Reader { text: std::str::from_utf8(body).ok()?, at: 0, scratch: String::new() };
    let mut out = Vec::with_capacity(body.len());
    reader.object(request, &mut out, 0)?;
    reader.space();
    (reader.at == body.len()).then_some(out)
}

struct Reader<'b> {
    text: &'b str,
    at: usize,
    scratch: String,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// The next mark, if it is this one.
    fn is(&mut self, mark: u8) -> bool {
        self.space();
        let found = self.peek() == Some(mark);
        self.at += usize::from(found);
        found
    }

    fn need(&mut self, mark: u8) -> Option<()> {
        self.is(mark).then_some(())
    }

    fn word(&mut self, word: &str) -> bool {
        self.space();
        let found = self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word));
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn object(&mut self, message: &Message, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        self.need(b'{')?;
        if depth > MAX_DEPTH {
            return None;
        }
        let mut seen = 0u32;
        if self.is(b'}') {
            return Some(());
        }
        loop {
            let key = self.string()?;
            let found = message.0.iter().enumerate().find(|(_, field)| field.name == key);
            if found.is_none() && REMOVED.contains(&key) {
                return None;
            }
            self.need(b':')?;
            match found {
                None => self.skip(depth + 1)?,
                Some((n, field)) => {
                    if seen & (1 << n) != 0 {
                        return None;
                    }
                    seen |= 1 << n;
                    if !self.word("null") {
                        self.field(field, out, depth)?;
                    }
                }
            }
            if self.is(b'}') {
                return Some(());
            }
            self.need(b',')?;
        }
    }

    fn field(&mut self, field: &Field, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        if !field.repeated {
            return self.value(field, out, depth);
        }
        self.need(b'[')?;
        if self.is(b']') {
            return Some(());
        }
        loop {
            self.value(field, out, depth)?;
            if self.is(b']') {
                return Some(());
            }
            self.need(b',')?;
        }
    }

    fn value(&mut self, field: &Field, out: &mut Vec<u8>, depth: usize) -> Option<()> {
        let mut tag = |wire_type: u32| varint::put(out, u64::from(field.number << 3 | wire_type));
        match field.kind {
            Kind::Message(message) => {
                tag(2);
                let start = out.len() + LENGTH_BYTES;
                out.extend_from_slice(&[0; LENGTH_BYTES]);
                self.object(message, out, depth + 1)?;
                let size = out.len() - start;
                for (n, byte) in out.get_mut(start - LENGTH_BYTES..start)?.iter_mut().enumerate() {
                    *byte = (size >> (7 * n)) as u8 & 0x7F | if n + 1 < LENGTH_BYTES { 0x80 } else { 0 };
                }
            }
            Kind::Text => {
                tag(2);
                let text = self.string()?;
                varint::blob(out, text.as_bytes());
            }
            Kind::Base64 => {
                tag(2);
                let standard = self.string()?.replace('-', "+").replace('_', "/");
                let digits = standard.trim_end_matches('=');
                let padding = standard.len() - digits.len();
                if padding > 0 && (padding > 2 || standard.len() % 4 != 0) {
                    return None;
                }
                varint::blob(out, &BASE64.decode(digits).ok()?);
            }
            Kind::Hex => {
                tag(2);
                let text = self.string()?.as_bytes();
                let (pairs, []) = text.as_chunks::<2>() else { return None };
                varint::put(out, pairs.len() as u64);
                for [high, low] in pairs {
                    let digit = |byte: &u8| char::from(*byte).to_digit(16);
                    out.push((digit(high)? << 4 | digit(low)?) as u8);
                }
            }
            Kind::Bool => {
                tag(0);
                let value = self.word("true");
                if !value && !self.word("false") {
                    return None;
                }
                out.push(u8::from(value));
            }
            Kind::Double => {
                tag(1);
                let number = self.double()?;
                out.extend_from_slice(&number.to_le_bytes());
            }
            Kind::Int32 => {
                tag(0);
                varint::put(out, i64::from(self.integer::<i32>()?) as u64);
            }
            Kind::Uint32 => {
                tag(0);
                varint::put(out, u64::from(self.integer::<u32>()?));
            }
            Kind::Fixed32 => {
                tag(5);
                out.extend_from_slice(&self.integer::<u32>()?.to_le_bytes());
            }
            Kind::Int64 => {
                tag(0);
                varint::put(out, self.integer::<i64>()? as u64);
            }
            Kind::Uint64 => {
                tag(0);
                varint::put(out, self.integer()?);
            }
            Kind::Fixed64 => {
                tag(1);
                out.extend_from_slice(&self.integer::<u64>()?.to_le_bytes());
            }
            Kind::Sfixed64 => {
                tag(1);
                out.extend_from_slice(&self.integer::<i64>()?.to_le_bytes());
            }
            Kind::Sint32 => {
                tag(0);
                let n = self.integer::<i32>()?;
                varint::put(out, u64::from((n << 1 ^ n >> 31) as u32));
            }
        }
        Some(())
    }

    /// An integer, as a number without point and exponent or as text.
    fn integer<T: TryFrom<i128>>(&mut self) -> Option<T> {
        self.space();
        let digits = if self.peek() == Some(b'"') {
            let text = self.string()?;
            let unsigned = text.strip_prefix('-').unwrap_or(text);
            if unsigned.is_empty() || unsigned.len() > 20 || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            text
        } else {
            self.number()?
        };
        T::try_from(digits.parse::<i128>().ok()?).ok()
    }

    fn double(&mut self) -> Option<f64> {
        self.space();
        if self.peek() == Some(b'"') {
            return match self.string()? {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                _ => None,
            };
        }
        let number = self.number()?;
        if number.contains(['.', 'e', 'E']) { number.parse().ok() } else { Some(number.parse::<i128>().ok()? as f64) }
    }

    /// A number by JSON's grammar.
    fn number(&mut self) -> Option<&str> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        let leads_with_zero = self.peek() == Some(b'0');
        let digits = self.digits();
        if digits == 0 || (leads_with_zero && digits > 1) {
            return None;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return None;
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if self.digits() == 0 {
                return None;
            }
        }
        if self.at - start > MAX_NUMBER {
            return None;
        }
        self.text.get(start..self.at)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    /// A text; in place where it holds no escape.
    fn string(&mut self) -> Option<&str> {
        self.need(b'"')?;
        let start = self.at;
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return self.text.get(start..self.at - 1);
                }
                b'\\' => return self.escaped(start),
                0..0x20 => return None,
                _ => self.at += 1,
            }
        }
    }

    fn escaped(&mut self, start: usize) -> Option<&str> {
        self.scratch.clear();
        self.scratch.push_str(self.text.get(start..self.at)?);
        loop {
            let plain = self.at;
            while !matches!(self.peek()?, b'"' | b'\\' | 0..0x20) {
                self.at += 1;
            }
            self.scratch.push_str(self.text.get(plain..self.at)?);
            let mark = self.peek()?;
            self.at += 1;
            match mark {
                b'"' => return Some(&self.scratch),
                b'\\' => {
                    let escaped = self.peek()?;
                    self.at += 1;
                    let character = match escaped {
                        b'"' | b'\\' | b'/' => char::from(escaped),
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        b'u' => self.unicode()?,
                        _ => return None,
                    };
                    self.scratch.push(character);
                }
                _ => return None,
            }
        }
    }

    fn unicode(&mut self) -> Option<char> {
        let first = self.hex4()?;
        if !(0xD800..0xDC00).contains(&first) {
            return char::from_u32(first);
        }
        if self.peek() != Some(b'\\') {
            return None;
        }
        self.at += 1;
        if self.peek() != Some(b'u') {
            return None;
        }
        self.at += 1;
        let second = self.hex4()?;
        if !(0xDC00..0xE000).contains(&second) {
            return None;
        }
        char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00))
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.chars().try_fold(0, |value, digit| Some(value << 4 | digit.to_digit(16)?))
    }

    /// Any value.
    fn skip(&mut self, depth: usize) -> Option<()> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.space();
        let (close, is_object) = match self.peek()? {
            b'"' => return self.string().map(|_| ()),
            b'{' => (b'}', true),
            b'[' => (b']', false),
            b't' | b'f' | b'n' => return ["true", "false", "null"].iter().any(|word| self.word(word)).then_some(()),
            _ => return self.number().map(|_| ()),
        };
        self.at += 1;
        if self.is(close) {
            return Some(());
        }
        loop {
            if is_object {
                self.string()?;
                self.need(b':')?;
            }
            self.skip(depth + 1)?;
            if self.is(close) {
                return Some(());
            }
            self.need(b',')?;
        }
    }
}

static EXPORT_LOGS_SERVICE_REQUEST: Message = Message(&[many("resourceLogs", 1, Kind::Message(&RESOURCE_LOGS))]);
static RESOURCE_LOGS: Message = Message(&[
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeLogs", 2, Kind::Message(&SCOPE_LOGS)),
    many("instrumentationLibraryLogs", 2, Kind::Message(&SCOPE_LOGS)),
    one("schemaUrl", 3, Kind::Text),
]);
static RESOURCE: Message = Message(&[
    many("attributes", 1, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 2, Kind::Uint32),
    many("entityRefs", 3, Kind::Message(&ENTITY_REF)),
]);
static KEY_VALUE: Message = Message(&[
    one("key", 1, Kind::Text),
    one("value", 2, Kind::Message(&ANY_VALUE)),
    one("keyStrindex", 3, Kind::Int32),
]);
static ANY_VALUE: Message = Message(&[
    one("stringValue", 1, Kind::Text),
    one("boolValue", 2, Kind::Bool),
    one("intValue", 3, Kind::Int64),
    one("doubleValue", 4, Kind::Double),
    one("arrayValue", 5, Kind::Message(&ARRAY_VALUE)),
    one("kvlistValue", 6, Kind::Message(&KEY_VALUE_LIST)),
    one("bytesValue", 7, Kind::Base64),
    one("stringValueStrindex", 8, Kind::Int32),
]);
static ARRAY_VALUE: Message = Message(&[many("values", 1, Kind::Message(&ANY_VALUE))]);
static KEY_VALUE_LIST: Message = Message(&[many("values", 1, Kind::Message(&KEY_VALUE))]);
static ENTITY_REF: Message = Message(&[
    one("schemaUrl", 1, Kind::Text),
    one("type", 2, Kind::Text),
    many("idKeys", 3, Kind::Text),
    many("descriptionKeys", 4, Kind::Text),
]);
static SCOPE_LOGS: Message = Message(&[
    one("scope", 1, Kind::Message(&INSTRUMENTATION_SCOPE)),
    one("instrumentationLibrary", 1, Kind::Message(&INSTRUMENTATION_SCOPE)),
    many("logRecords", 2, Kind::Message(&LOG_RECORD)),
    many("logs", 2, Kind::Message(&LOG_RECORD)),
    one("schemaUrl", 3, Kind::Text),
]);
static INSTRUMENTATION_SCOPE: Message = Message(&[
    one("name", 1, Kind::Text),
    one("version", 2, Kind::Text),
    many("attributes", 3, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Kind::Uint32),
]);
static LOG_RECORD: Message = Message(&[
    one("timeUnixNano", 1, Kind::Fixed64),
    one("observedTimeUnixNano", 11, Kind::Fixed64),
    one("severityNumber", 2, Kind::Int32),
    one("severityText", 3, Kind::Text),
    one("body", 5, Kind::Message(&ANY_VALUE)),
    many("attributes", 6, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 7, Kind::Uint32),
    one("flags", 8, Kind::Fixed32),
    one("traceId", 9, Kind::Hex),
    one("spanId", 10, Kind::Hex),
    one("eventName", 12, Kind::Text),
]);
static EXPORT_METRICS_SERVICE_REQUEST: Message =
    Message(&[many("resourceMetrics", 1, Kind::Message(&RESOURCE_METRICS))]);
static RESOURCE_METRICS: Message = Message(&[
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeMetrics", 2, Kind::Message(&SCOPE_METRICS)),
    many("instrumentationLibraryMetrics", 2, Kind::Message(&SCOPE_METRICS)),
    one("schemaUrl", 3, Kind::Text),
]);
static SCOPE_METRICS: Message = Message(&[
    one("scope", 1, Kind::Message(&INSTRUMENTATION_SCOPE)),
    one("instrumentationLibrary", 1, Kind::Message(&INSTRUMENTATION_SCOPE)),
    many("metrics", 2, Kind::Message(&METRIC)),
    one("schemaUrl", 3, Kind::Text),
]);
static METRIC: Message = Message(&[
    one("name", 1, Kind::Text),
    one("description", 2, Kind::Text),
    one("unit", 3, Kind::Text),
    one("gauge", 5, Kind::Message(&GAUGE)),
    one("sum", 7, Kind::Message(&SUM)),
    one("histogram", 9, Kind::Message(&HISTOGRAM)),
    one("exponentialHistogram", 10, Kind::Message(&EXPONENTIAL_HISTOGRAM)),
    one("summary", 11, Kind::Message(&SUMMARY)),
    many("metadata", 12, Kind::Message(&KEY_VALUE)),
]);
static GAUGE: Message = Message(&[many("dataPoints", 1, Kind::Message(&NUMBER_DATA_POINT))]);
static NUMBER_DATA_POINT: Message = Message(&[
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("asDouble", 4, Kind::Double),
    one("asInt", 6, Kind::Sfixed64),
    many("exemplars", 5, Kind::Message(&EXEMPLAR)),
    one("flags", 8, Kind::Uint32),
]);
static EXEMPLAR: Message = Message(&[
    many("filteredAttributes", 7, Kind::Message(&KEY_VALUE)),
    one("timeUnixNano", 2, Kind::Fixed64),
    one("asDouble", 3, Kind::Double),
    one("asInt", 6, Kind::Sfixed64),
    one("spanId", 4, Kind::Hex),
    one("traceId", 5, Kind::Hex),
]);
static SUM: Message = Message(&[
    many("dataPoints", 1, Kind::Message(&NUMBER_DATA_POINT)),
    one("aggregationTemporality", 2, Kind::Int32),
    one("isMonotonic", 3, Kind::Bool),
]);
static HISTOGRAM: Message = Message(&[
    many("dataPoints", 1, Kind::Message(&HISTOGRAM_DATA_POINT)),
    one("aggregationTemporality", 2, Kind::Int32),
]);
static HISTOGRAM_DATA_POINT: Message = Message(&[
    many("attributes", 9, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("count", 4, Kind::Fixed64),
    one("sum", 5, Kind::Double),
    many("bucketCounts", 6, Kind::Fixed64),
    many("explicitBounds", 7, Kind::Double),
    many("exemplars", 8, Kind::Message(&EXEMPLAR)),
    one("flags", 10, Kind::Uint32),
    one("min", 11, Kind::Double),
    one("max", 12, Kind::Double),
]);
static EXPONENTIAL_HISTOGRAM: Message = Message(&[
    many("dataPoints", 1, Kind::Message(&EXPONENTIAL_HISTOGRAM_DATA_POINT)),
    one("aggregationTemporality", 2, Kind::Int32),
]);
static EXPONENTIAL_HISTOGRAM_DATA_POINT: Message = Message(&[
    many("attributes", 1, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("count", 4, Kind::Fixed64),
    one("sum", 5, Kind::Double),
    one("scale", 6, Kind::Sint32),
    one("zeroCount", 7, Kind::Fixed64),
    one("positive", 8, Kind::Message(&EXPONENTIAL_HISTOGRAM_DATA_POINT_BUCKETS)),
    one("negative", 9, Kind::Message(&EXPONENTIAL_HISTOGRAM_DATA_POINT_BUCKETS)),
    one("flags", 10, Kind::Uint32),
    many("exemplars", 11, Kind::Message(&EXEMPLAR)),
    one("min", 12, Kind::Double),
    one("max", 13, Kind::Double),
    one("zeroThreshold", 14, Kind::Double),
]);
static EXPONENTIAL_HISTOGRAM_DATA_POINT_BUCKETS: Message =
    Message(&[one("offset", 1, Kind::Sint32), many("bucketCounts", 2, Kind::Uint64)]);
static SUMMARY: Message = Message(&[many("dataPoints", 1, Kind::Message(&SUMMARY_DATA_POINT))]);
static SUMMARY_DATA_POINT: Message = Message(&[
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed64),
    one("timeUnixNano", 3, Kind::Fixed64),
    one("count", 4, Kind::Fixed64),
    one("sum", 5, Kind::Double),
    many("quantileValues", 6, Kind::Message(&SUMMARY_DATA_POINT_VALUE_AT_QUANTILE)),
    one("flags", 8, Kind::Uint32),
]);
static SUMMARY_DATA_POINT_VALUE_AT_QUANTILE: Message =
    Message(&[one("quantile", 1, Kind::Double), one("value", 2, Kind::Double)]);
static EXPORT_TRACE_SERVICE_REQUEST: Message = Message(&[many("resourceSpans", 1, Kind::Message(&RESOURCE_SPANS))]);
static RESOURCE_SPANS: Message = Message(&[
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeSpans", 2, Kind::Message(&SCOPE_SPANS)),
    many("instrumentationLibrarySpans", 2, Kind::Message(&SCOPE_SPANS)),
    one("schemaUrl", 3, Kind::Text),
]);
static SCOPE_SPANS: Message = Message(&[
    one("scope", 1, Kind::Message(&INSTRUMENTATION_SCOPE)),
    one("instrumentationLibrary", 1, Kind::Message(&INSTRUMENTATION_SCOPE)),
    many("spans", 2, Kind::Message(&SPAN)),
    one("schemaUrl", 3, Kind::Text),
]);
static SPAN: Message = Message(&[
    one("traceId", 1, Kind::Hex),
    one("spanId", 2, Kind::Hex),
    one("traceState", 3, Kind::Text),
    one("parentSpanId", 4, Kind::Hex),
    one("flags", 16, Kind::Fixed32),
    one("name", 5, Kind::Text),
    one("kind", 6, Kind::Int32),
    one("startTimeUnixNano", 7, Kind::Fixed64),
    one("endTimeUnixNano", 8, Kind::Fixed64),
    many("attributes", 9, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 10, Kind::Uint32),
    many("events", 11, Kind::Message(&SPAN_EVENT)),
    one("droppedEventsCount", 12, Kind::Uint32),
    many("links", 13, Kind::Message(&SPAN_LINK)),
    one("droppedLinksCount", 14, Kind::Uint32),
    one("status", 15, Kind::Message(&STATUS)),
]);
static SPAN_EVENT: Message = Message(&[
    one("timeUnixNano", 1, Kind::Fixed64),
    one("name", 2, Kind::Text),
    many("attributes", 3, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 4, Kind::Uint32),
]);
static SPAN_LINK: Message = Message(&[
    one("traceId", 1, Kind::Hex),
    one("spanId", 2, Kind::Hex),
    one("traceState", 3, Kind::Text),
    many("attributes", 4, Kind::Message(&KEY_VALUE)),
    one("droppedAttributesCount", 5, Kind::Uint32),
    one("flags", 6, Kind::Fixed32),
]);
static STATUS: Message = Message(&[one("message", 2, Kind::Text), one("code", 3, Kind::Int32)]);
