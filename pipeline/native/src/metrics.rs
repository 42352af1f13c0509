//! OTLP metrics → metric_point, every data kind; see `pipeline/otlp/metrics.py`.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::avro;
use crate::blake2b::{State, digests};
use crate::request::{Encoded, Labels, Messages, Reason, Refusal, Request, Shared};
use crate::values::{Attributes, Limits, key_value};
use crate::wire::{
    Child, Counted, DEPTH, Fault, Fields, Level, Part, Text, Wire, bits, inside, packed_fixed64, packed_varints, text,
    zigzag32,
};

const SERIES_DIGEST_BYTES: usize = 64;
const NO_RECORDED_VALUE: u32 = 1; // DataPointFlags
const METRICS: Messages = Messages {
    request: Part { children: bits(&[1]), shell: 0, counted: Counted::Resources },
    resource: Part { children: bits(&[2]), shell: bits(&[1, 3]), counted: Counted::Scopes },
    scope: Part { children: bits(&[2]), shell: bits(&[1, 3]), counted: Counted::Metrics },
    resource_name: "ResourceMetrics",
    scope_name: "ScopeMetrics",
};
const OUTDATED: &str =
    "metrics as before OTLP 0.9, of 2021, with labels for attributes, are not read: a newer SDK is needed";
const OUTDATED_DATA: [u64; 3] = [4, 6, 8]; // IntGauge, IntSum and IntHistogram
const METRIC: Part =
    Part { children: bits(&[4, 5, 6, 7, 8, 9, 10, 11]), shell: bits(&[1, 2, 3, 12]), counted: Counted::DataOfMetrics };

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Sum,
    Histogram,
    ExponentialHistogram,
    Summary,
}

impl Kind {
    /// By field number in Metric.
    fn of(number: u64) -> Option<Kind> {
        Some(match number {
            5 => Kind::Gauge,
            7 => Kind::Sum,
            9 => Kind::Histogram,
            10 => Kind::ExponentialHistogram,
            11 => Kind::Summary,
            _ => return None,
        })
    }

    fn part(self) -> Part {
        let shell = match self {
            Kind::Gauge | Kind::Summary => 0,
            Kind::Sum => bits(&[2, 3]),
            Kind::Histogram | Kind::ExponentialHistogram => bits(&[2]),
        };
        Part { children: bits(&[1]), shell, counted: Counted::Records }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Gauge => "Gauge",
            Kind::Sum => "Sum",
            Kind::Histogram => "Histogram",
            Kind::ExponentialHistogram => "ExponentialHistogram",
            Kind::Summary => "Summary",
        }
    }

    fn point_name(self) -> &'static str {
        match self {
            Kind::Gauge | Kind::Sum => "NumberDataPoint",
            Kind::Histogram => "HistogramDataPoint",
            Kind::ExponentialHistogram => "ExponentialHistogramDataPoint",
            Kind::Summary => "SummaryDataPoint",
        }
    }
}

pub fn encode(mut request: Request) -> Result<Encoded, Refusal> {
    let mut scratch = Scratch::default();
    request.scopes(&METRICS, |request, shared, scope_metrics| {
        for child in &scope_metrics.children {
            let metric = request.level(&METRIC, (child.start, child.end))?;
            let (kind, data) = last_kind(request, &metric)?;
            match (shared, &metric.shell) {
                (Some(shared), Some(shell)) if data.iter().all(|part| part.shell.is_some()) => {
                    let described = read_metric(shell).map_err(|fault| fault.of("Metric"))?;
                    if let Some(kind) = kind {
                        encode_metric(request, shared, (kind, &described, &data), &mut scratch)?;
                    }
                }
                _ => {
                    for part in &data {
                        request.refuse(part.children.len(), Reason::RecordTooLarge);
                    }
                }
            }
        }
        Ok(())
    })?;
    Ok(request.finish())
}

/// A metric's kind and data, in as many parts as were sent; what a later kind displaced is not looked into.
fn last_kind(request: &mut Request, metric: &Level) -> Result<(Option<Kind>, Vec<Level>), Refusal> {
    let Some(Child { number, .. }) = metric.children.last() else { return Ok((None, Vec::new())) };
    if OUTDATED_DATA.contains(number) {
        return Err(Refusal::malformed(OUTDATED));
    }
    let Some(kind) = Kind::of(*number) else { return Ok((None, Vec::new())) };
    let first = metric.children.iter().rposition(|child| child.number != *number).map_or(0, |at| at + 1);
    let mut data = Vec::new();
    for child in metric.children.iter().skip(first) {
        data.push(request.level(&kind.part(), (child.start, child.end))?);
    }
    Ok((Some(kind), data))
}

#[derive(Default)]
struct Described<'s> {
    name: Text<'s>,
    description: Text<'s>,
    unit: Text<'s>,
}

fn read_metric(shell: &[u8]) -> Result<Described<'_>, Fault> {
    let mut metric = Described::default();
    let mut fields = Fields::new(shell, DEPTH);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Bytes(data)) => metric.name = text(data)?,
            (2, Wire::Bytes(data)) => metric.description = text(data)?,
            (3, Wire::Bytes(data)) => metric.unit = text(data)?,
            (12, Wire::Bytes(data)) => {
                key_value(data, inside(DEPTH)?)?;
            }
            _ => {}
        }
    }
    Ok(metric)
}

/// aggregation_temporality and is_monotonic, of all parts of a metric's data; 0 and false where a kind has none.
fn read_settings(kind: Kind, data: &[Level]) -> Result<(i32, bool), Fault> {
    let (mut temporality, mut monotonic) = (0, false);
    for part in data {
        let mut fields = Fields::new(part.shell.as_deref().unwrap_or_default(), DEPTH);
        while let Some(field) = fields.next()? {
            match (kind, field) {
                (Kind::Sum | Kind::Histogram | Kind::ExponentialHistogram, (2, Wire::Varint(n))) => {
                    temporality = n as i32;
                }
                (Kind::Sum, (3, Wire::Varint(n))) => monotonic = n != 0,
                _ => {}
            }
        }
    }
    Ok((temporality, monotonic))
}

#[derive(Default)]
struct Scratch<'a> {
    point: Point<'a>,
    numbers: Vec<u8>,
    attributes: Attributes<'a>,
    key: Vec<u8>,
}

fn encode_metric<'a>(
    request: &mut Request<'a>,
    shared: &Shared,
    (kind, metric, data): (Kind, &Described, &[Level]),
    scratch: &mut Scratch<'a>,
) -> Result<(), Refusal> {
    let (temporality, monotonic) = read_settings(kind, data).map_err(|fault| fault.of(kind.name()))?;
    if !(0..=2).contains(&temporality) {
        for part in data {
            request.refuse(part.children.len(), Reason::UnknownTemporality);
        }
        return Ok(());
    }
    let mut fields = shared.fields.clone();
    for text in [metric.name, metric.description, metric.unit] {
        avro::blob(&mut fields, text.as_bytes());
    }
    avro::long(&mut fields, kind as i64);
    avro::long(&mut fields, i64::from(temporality));
    fields.push(u8::from(monotonic));
    let mut hashed = shared.hashed;
    hashed.absorb(&fields);
    request.begin(&fields, hashed);
    let series = Series { tenant: &request.origin.tenant, metric_name: metric.name, labels: &shared.labels };
    let mut known = Known::of(&request.limits, &fields);
    let Scratch { point, numbers, attributes, key } = scratch;
    for part in data {
        request.records(part, 1, |request, data| {
            point.read(kind, data).map_err(|fault| fault.of(kind.point_name()))?;
            if point.has_labels {
                return Err(Refusal::malformed(OUTDATED));
            }
            if point.has_count_too_large(kind) {
                request.refuse(1, Reason::CountTooLarge);
                return Ok(());
            }
            numbers.clear();
            point.write_numbers(kind, numbers, attributes, &mut request.limits)?;
            request.add(&fields, (shared.partition, point.time), |limits, out| {
                write_key(key, &point.attributes);
                if let Some(found) = known.get(key) {
                    out.extend_from_slice(found);
                } else {
                    let (start, cut) = (out.len(), limits.cut);
                    attributes.read(&point.attributes, limits)?;
                    attributes.write(out);
                    avro::long(out, series.id(attributes));
                    if limits.cut == cut {
                        known.keep(key, out.get(start..).unwrap_or_default());
                    }
                }
                avro::long(out, point.start_time);
                avro::long(out, point.time);
                avro::long(out, i64::from(point.flags));
                out.extend_from_slice(numbers);
                Ok(())
            })
        })?;
    }
    known.remember();
    Ok(())
}

/// Attributes as sent, such that no others give the same bytes.
fn write_key(key: &mut Vec<u8>, raws: &[&[u8]]) {
    key.clear();
    for raw in raws {
        avro::blob(key, raw);
    }
}

const KNOWN_BYTES: usize = 32 * 1024 * 1024; // of a thread
const METRIC_BYTES: usize = 500; // of an entry with its map and its list, beside what these hold
const SERIES_BYTES: usize = 120; // of an entry in both, beside its texts

/// Attributes as sent, with attributes and series_id encoded, in the order in which they were met; and their places.
#[derive(Default)]
struct Met {
    series: Vec<(Vec<u8>, Vec<u8>)>,
    places: HashMap<Vec<u8>, usize>,
}

thread_local! {
    /// By limits and first fields; and the size of all in bytes.
    static SERIES: RefCell<(HashMap<Vec<u8>, Met>, usize)> = RefCell::default();
}

/// The series of one metric, resource and scope that this thread has met under the same limits.
struct Known {
    of: Vec<u8>,
    met: Met,
    next: usize, // in `met`: clients send series in the same order each time
    more_bytes: usize,
}

impl Known {
    fn of(limits: &Limits, fields: &[u8]) -> Self {
        let mut of = limits.key();
        of.extend_from_slice(fields);
        let found = SERIES.with_borrow_mut(|(known, _)| known.remove(&of));
        let more_bytes = if found.is_some() { 0 } else { of.len() + METRIC_BYTES };
        Known { of, met: found.unwrap_or_default(), next: 0, more_bytes }
    }

    fn get(&mut self, key: &[u8]) -> Option<&[u8]> {
        let Met { series, places } = &self.met;
        let at = match series.get(self.next) {
            Some((next, _)) if next == key => self.next,
            _ => *places.get(key)?,
        };
        self.next = if at + 1 < series.len() { at + 1 } else { 0 };
        series.get(at).map(|(_, encoded)| encoded.as_slice())
    }

    fn keep(&mut self, key: &[u8], encoded: &[u8]) {
        self.more_bytes += 2 * key.len() + encoded.len() + SERIES_BYTES;
        if self.more_bytes <= KNOWN_BYTES {
            self.met.places.insert(key.to_vec(), self.met.series.len());
            self.met.series.push((key.to_vec(), encoded.to_vec()));
        }
    }

    /// All is forgotten when it would be too much.
    fn remember(self) {
        SERIES.with_borrow_mut(|(known, bytes)| {
            *bytes += self.more_bytes;
            if *bytes > KNOWN_BYTES {
                known.clear();
                *bytes = 0;
            } else {
                known.insert(self.of, self.met);
            }
        });
    }
}

/// What the series of one metric, resource and scope share.
struct Series<'s> {
    tenant: &'s str,
    metric_name: Text<'s>,
    labels: &'s Labels,
}

impl Series<'_> {
    /// First 8 bytes, big-endian and signed, of BLAKE2b-512 over tenant, name and sorted labels as Avro encodes them.
    fn id(&self, attributes: &Attributes) -> i64 {
        let mut pairs = Vec::new();
        let mut count = 0;
        let mut own = attributes.iter().peekable();
        let mut shared = self.labels.iter().peekable();
        loop {
            let next_is_own = match (own.peek(), shared.peek()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((key, _)), Some((other, _))) => {
                    if *key == other.as_slice() {
                        shared.next();
                    }
                    shared.peek().is_none_or(|(other, _)| *key < other.as_slice())
                }
            };
            count += 1;
            if next_is_own {
                if let Some((key, text)) = own.next() {
                    avro::blob(&mut pairs, key);
                    avro::blob(&mut pairs, text);
                }
            } else if let Some((_, pair)) = shared.next() {
                pairs.extend_from_slice(pair);
            }
        }
        let mut content = Vec::with_capacity(pairs.len() + self.tenant.len() + self.metric_name.as_bytes().len() + 16);
        avro::blob(&mut content, self.tenant.as_bytes());
        avro::blob(&mut content, self.metric_name.as_bytes());
        if count > 0 {
            avro::size(&mut content, count);
            content.extend_from_slice(&pairs);
        }
        content.push(avro::NOTHING);
        let [digest, ..] = digests(&[(&State::new(SERIES_DIGEST_BYTES), &content)])[..] else { return 0 };
        digest.first_chunk().map_or(0, |first| i64::from_be_bytes(*first))
    }
}

#[derive(Default, Clone, Copy)]
enum Number {
    #[default]
    None,
    Int(i64),
    Double(f64),
}

impl Number {
    fn double(self) -> f64 {
        match self {
            Number::None => 0.0,
            Number::Int(n) => n as f64,
            Number::Double(number) => number,
        }
    }
}

/// Offset and counts of an exponential histogram's buckets.
#[derive(Default)]
struct Buckets {
    offset: i32,
    counts: Vec<u64>,
}

impl Buckets {
    fn clear(&mut self) {
        self.offset = 0;
        self.counts.clear();
    }

    fn merge(&mut self, data: &[u8]) -> Result<(), Fault> {
        let mut fields = Fields::new(data, inside(DEPTH)?);
        while let Some(field) = fields.next()? {
            match field {
                (1, Wire::Varint(n)) => self.offset = zigzag32(n),
                (2, Wire::Varint(n)) => self.counts.push(n),
                (2, Wire::Bytes(data)) => packed_varints(data, |n| self.counts.push(n))?,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A data point of any kind; `read` leaves what its kind has not.
#[derive(Default)]
struct Point<'a> {
    attributes: Vec<&'a [u8]>,
    has_labels: bool, // as before OTLP 0.9
    start_time: i64,
    time: i64,
    flags: u32,
    value: Number,
    count: u64,
    sum: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
    explicit_bounds: Vec<f64>,
    bucket_counts: Vec<u64>,
    scale: i32,
    zero_count: u64,
    zero_threshold: f64,
    positive: Buckets,
    negative: Buckets,
    quantiles: Vec<(f64, f64)>,
    exemplars: Vec<&'a [u8]>,
}

impl<'a> Point<'a> {
    /// Field by field, since a whole point is large to write anew.
    fn clear(&mut self) {
        self.attributes.clear();
        self.has_labels = false;
        (self.start_time, self.time, self.flags) = (0, 0, 0);
        self.value = Number::None;
        self.count = 0;
        (self.sum, self.min, self.max) = (None, None, None);
        self.explicit_bounds.clear();
        self.bucket_counts.clear();
        (self.scale, self.zero_count, self.zero_threshold) = (0, 0, 0.0);
        self.positive.clear();
        self.negative.clear();
        self.quantiles.clear();
        self.exemplars.clear();
    }

    fn read(&mut self, kind: Kind, data: &'a [u8]) -> Result<(), Fault> {
        self.clear();
        let mut fields = Fields::new(data, DEPTH);
        while let Some((number, value)) = fields.next()? {
            match (number, value) {
                (2, Wire::Fixed64(n)) => self.start_time = n as i64,
                (3, Wire::Fixed64(n)) => self.time = n as i64,
                (1, Wire::Bytes(_)) if !matches!(kind, Kind::ExponentialHistogram) => self.has_labels = true,
                field => match kind {
                    Kind::Gauge | Kind::Sum => self.number(field)?,
                    Kind::Histogram => self.histogram(field)?,
                    Kind::ExponentialHistogram => self.exponential_histogram(field)?,
                    Kind::Summary => self.summary(field)?,
                },
            }
        }
        Ok(())
    }

    #[inline]
    fn number(&mut self, field: (u32, Wire<'a>)) -> Result<(), Fault> {
        match field {
            (4, Wire::Fixed64(bits)) => self.value = Number::Double(f64::from_bits(bits)),
            (5, Wire::Bytes(data)) => self.exemplar(data)?,
            (6, Wire::Fixed64(n)) => self.value = Number::Int(n as i64),
            (7, Wire::Bytes(raw)) => self.attributes.push(raw),
            (8, Wire::Varint(n)) => self.flags = n as u32,
            _ => {}
        }
        Ok(())
    }

    fn histogram(&mut self, field: (u32, Wire<'a>)) -> Result<(), Fault> {
        match field {
            (4, Wire::Fixed64(n)) => self.count = n,
            (5, Wire::Fixed64(bits)) => self.sum = Some(f64::from_bits(bits)),
            (6, Wire::Fixed64(n)) => self.bucket_counts.push(n),
            (6, Wire::Bytes(data)) => packed_fixed64(data, |n| self.bucket_counts.push(n))?,
            (7, Wire::Fixed64(bits)) => self.explicit_bounds.push(f64::from_bits(bits)),
            (7, Wire::Bytes(data)) => packed_fixed64(data, |n| self.explicit_bounds.push(f64::from_bits(n)))?,
            (8, Wire::Bytes(data)) => self.exemplar(data)?,
            (9, Wire::Bytes(raw)) => self.attributes.push(raw),
            (10, Wire::Varint(n)) => self.flags = n as u32,
            (11, Wire::Fixed64(bits)) => self.min = Some(f64::from_bits(bits)),
            (12, Wire::Fixed64(bits)) => self.max = Some(f64::from_bits(bits)),
            _ => {}
        }
        Ok(())
    }

    fn exponential_histogram(&mut self, field: (u32, Wire<'a>)) -> Result<(), Fault> {
        match field {
            (1, Wire::Bytes(raw)) => self.attributes.push(raw),
            (4, Wire::Fixed64(n)) => self.count = n,
            (5, Wire::Fixed64(bits)) => self.sum = Some(f64::from_bits(bits)),
            (6, Wire::Varint(n)) => self.scale = zigzag32(n),
            (7, Wire::Fixed64(n)) => self.zero_count = n,
            (8, Wire::Bytes(data)) => self.positive.merge(data)?,
            (9, Wire::Bytes(data)) => self.negative.merge(data)?,
            (10, Wire::Varint(n)) => self.flags = n as u32,
            (11, Wire::Bytes(data)) => self.exemplar(data)?,
            (12, Wire::Fixed64(bits)) => self.min = Some(f64::from_bits(bits)),
            (13, Wire::Fixed64(bits)) => self.max = Some(f64::from_bits(bits)),
            (14, Wire::Fixed64(bits)) => self.zero_threshold = f64::from_bits(bits),
            _ => {}
        }
        Ok(())
    }

    fn summary(&mut self, field: (u32, Wire<'a>)) -> Result<(), Fault> {
        match field {
            (4, Wire::Fixed64(n)) => self.count = n,
            (5, Wire::Fixed64(bits)) => self.sum = Some(f64::from_bits(bits)),
            (6, Wire::Bytes(data)) => {
                let (mut quantile, mut value) = (0.0, 0.0);
                let mut fields = Fields::new(data, inside(DEPTH)?);
                while let Some(field) = fields.next()? {
                    match field {
                        (1, Wire::Fixed64(bits)) => quantile = f64::from_bits(bits),
                        (2, Wire::Fixed64(bits)) => value = f64::from_bits(bits),
                        _ => {}
                    }
                }
                self.quantiles.push((quantile, value));
            }
            (7, Wire::Bytes(raw)) => self.attributes.push(raw),
            (8, Wire::Varint(n)) => self.flags = n as u32,
            _ => {}
        }
        Ok(())
    }

    fn exemplar(&mut self, data: &'a [u8]) -> Result<(), Fault> {
        read_exemplar(data, |_| {})?; // what is malformed is so before anything is taken
        self.exemplars.push(data);
        Ok(())
    }

    /// Whether one of the counts that its kind stores is more than a signed 64-bit integer holds.
    fn has_count_too_large(&self, kind: Kind) -> bool {
        let too_large = |n: &u64| i64::try_from(*n).is_err();
        match kind {
            Kind::Gauge | Kind::Sum => false,
            Kind::Histogram => too_large(&self.count) || self.bucket_counts.iter().any(too_large),
            Kind::ExponentialHistogram => {
                let buckets = self.positive.counts.iter().chain(&self.negative.counts);
                [self.count, self.zero_count].iter().chain(buckets).any(too_large)
            }
            Kind::Summary => too_large(&self.count),
        }
    }

    /// The fields from `value` to `exemplars`.
    fn write_numbers(
        &self,
        kind: Kind,
        out: &mut Vec<u8>,
        attributes: &mut Attributes<'a>,
        limits: &mut Limits,
    ) -> Result<(), Refusal> {
        match self.value {
            value if value.is_none() || self.flags & NO_RECORDED_VALUE != 0 => {
                out.extend_from_slice(&[avro::NOTHING; 2]);
            }
            Number::Int(n) => {
                avro::optional(out, Some(n as f64));
                out.push(avro::PRESENT);
                avro::long(out, n);
            }
            value => {
                avro::optional(out, Some(value.double()));
                out.push(avro::NOTHING);
            }
        }
        avro::long(out, self.count as i64);
        avro::optional(out, if matches!(kind, Kind::Summary) { self.sum.or(Some(0.0)) } else { self.sum });
        avro::optional(out, self.min);
        avro::optional(out, self.max);
        avro::array(out, &self.explicit_bounds, |out, bound| avro::double(out, *bound));
        avro::array(out, &self.bucket_counts, |out, n| avro::long(out, *n as i64));
        avro::long(out, i64::from(self.scale));
        avro::long(out, self.zero_count as i64);
        avro::double(out, self.zero_threshold);
        for Buckets { offset, counts } in [&self.positive, &self.negative] {
            avro::long(out, i64::from(*offset));
            avro::array(out, counts, |out, n| avro::long(out, *n as i64));
        }
        avro::array(out, &self.quantiles, |out, (quantile, value)| {
            avro::double(out, *quantile);
            avro::double(out, *value);
        });
        if !self.exemplars.is_empty() {
            avro::size(out, self.exemplars.len());
            for raw in &self.exemplars {
                write_exemplar(out, raw, attributes, limits)?;
            }
        }
        out.push(avro::NOTHING);
        Ok(())
    }
}

impl Number {
    fn is_none(self) -> bool {
        matches!(self, Number::None)
    }
}

#[derive(Default)]
struct Exemplar<'a> {
    time: i64,
    value: Number,
    trace_id: &'a [u8],
    span_id: &'a [u8],
}

fn read_exemplar<'a>(data: &'a [u8], mut attribute: impl FnMut(&'a [u8])) -> Result<Exemplar<'a>, Fault> {
    let mut exemplar = Exemplar::default();
    let mut fields = Fields::new(data, inside(DEPTH)?);
    while let Some(field) = fields.next()? {
        match field {
            (2, Wire::Fixed64(n)) => exemplar.time = n as i64,
            (3, Wire::Fixed64(bits)) => exemplar.value = Number::Double(f64::from_bits(bits)),
            (4, Wire::Bytes(data)) => exemplar.span_id = data,
            (5, Wire::Bytes(data)) => exemplar.trace_id = data,
            (6, Wire::Fixed64(n)) => exemplar.value = Number::Int(n as i64),
            (7, Wire::Bytes(raw)) => attribute(raw),
            _ => {}
        }
    }
    Ok(exemplar)
}

fn write_exemplar<'a>(
    out: &mut Vec<u8>,
    raw: &'a [u8],
    attributes: &mut Attributes<'a>,
    limits: &mut Limits,
) -> Result<(), Refusal> {
    let mut raws = Vec::new();
    let exemplar = read_exemplar(raw, |attribute| raws.push(attribute)).map_err(|fault| fault.of("Exemplar"))?;
    avro::long(out, exemplar.time);
    avro::double(out, exemplar.value.double());
    avro::blob(out, exemplar.trace_id);
    avro::blob(out, exemplar.span_id);
    attributes.read(&raws, limits)?;
    attributes.write(out);
    Ok(())
}
