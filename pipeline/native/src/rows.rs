//! Metric points as PostgreSQL's binary COPY rows; see `pipeline/timescale/rows.py`, which is the reference.
//!
//! What does not decode, or is not as the gateway writes it, is left to the reference.

use crate::avro::Reader;

const SYNC_BYTES: usize = 16;
const SANE_FROM_NS: i64 = 946_684_800 * 1_000_000_000; // 2000-01-01
const SANE_AHEAD_NS: i64 = 86_400 * 1_000_000_000; // of the receipt
const RECEIPT_NS: i64 = 1_000_000; // receipts are whole milliseconds: what is below tells the forms of an event apart
const EPOCH_2000_US: i64 = 946_684_800 * 1_000_000;
const HOUR_US: i64 = 3600 * 1_000_000;
const NO_RECORDED_VALUE: i64 = 1; // OTLP's DataPointFlags
const FLOAT8: i32 = 701; // OIDs
const INT8: i32 = 20;
const TABLES: usize = 4; // plain numbers, histograms, exponential histograms, summaries

/// Rows for one table: how many, how many of them a later event of the same series and time beats, their hours since
/// 2000, and the rows, sorted by series and time.
#[derive(Default)]
pub struct Table {
    pub height: usize,
    pub beaten: usize,
    pub hours: Vec<i64>,
    pub rows: Vec<u8>,
}

/// The points of a container file that starts with `head`, by table, and their series.
pub fn copy_rows(head: &[u8], file: &[u8]) -> Option<([Table; TABLES], Vec<i64>)> {
    let mut reader = Reader { rest: file.strip_prefix(head)? };
    let sync = head.last_chunk::<SYNC_BYTES>()?;
    let mut points = Vec::new();
    let mut shared: &[u8] = &[];
    while !reader.rest.is_empty() {
        let count = reader.size()?;
        let size = reader.size()?;
        let mut block = Reader { rest: reader.take(size)? };
        for _ in 0..count {
            points.push(block.point(&mut shared)?);
        }
        if !block.rest.is_empty() || reader.take(SYNC_BYTES)? != sync {
            return None;
        }
    }
    points.sort_unstable_by_key(|point| (point.series_id, point.time));
    let mut series: Vec<i64> = points.iter().map(|point| point.series_id).collect();
    series.dedup();
    let mut tables: [Table; TABLES] = Default::default();
    for (kind, table) in tables.iter_mut().enumerate() {
        let of_kind = points.iter().filter(|point| point.table() == kind);
        table.fill(of_kind)?;
    }
    Some((tables, series))
}

impl Table {
    fn fill<'p, 'd: 'p>(&mut self, points: impl Iterator<Item = &'p Point<'d>>) -> Option<()> {
        let mut twins: Vec<&[u8]> = Vec::new();
        let mut place = None;
        for point in points {
            self.height += 1;
            if place != Some((point.series_id, point.time)) {
                self.beaten += beaten(&mut twins);
                place = Some((point.series_id, point.time));
            }
            twins.push(point.event_id);
            let hour = point.time.div_euclid(HOUR_US);
            if self.hours.last() != Some(&hour) {
                self.hours.push(hour);
            }
            point.write(&mut self.rows)?;
        }
        self.beaten += beaten(&mut twins);
        self.hours.sort_unstable();
        self.hours.dedup();
        Some(())
    }
}

/// Of the events of one series and time, all but one; forgets them.
fn beaten(twins: &mut Vec<&[u8]>) -> usize {
    twins.sort_unstable();
    twins.dedup();
    let others = twins.len().saturating_sub(1);
    twins.clear();
    others
}

/// A point as far as tables hold it; `numbers` is what follows its flags, still encoded. Times in µs since 2000.
struct Point<'a> {
    event_id: &'a [u8],
    region: &'a [u8],
    received: i64,
    kind: u8,
    series_id: i64,
    time: i64,
    recorded: bool,
    value: Option<f64>,
    numbers: Reader<'a>,
}

impl Point<'_> {
    fn table(&self) -> usize {
        usize::from(self.kind.saturating_sub(1)) // gauges and sums share one
    }

    fn write(&self, out: &mut Vec<u8>) -> Option<()> {
        let own: i16 = match self.kind {
            0 | 1 => 1,
            2 => 6,
            3 => 11,
            _ => 4,
        };
        out.extend_from_slice(&(5 + own).to_be_bytes());
        int8(out, self.time);
        int8(out, self.series_id);
        field(out, self.event_id);
        field(out, self.region);
        int8(out, self.received);
        if self.kind <= 1 {
            optional(out, self.value);
            return Some(());
        }
        let mut numbers = Reader { rest: self.numbers.rest };
        let count = numbers.long()?;
        if self.recorded {
            int8(out, count);
        } else {
            null(out);
        }
        for n in 0..3 {
            let number = numbers.optional()?.filter(|_| self.recorded);
            if self.kind != 4 || n == 0 {
                optional(out, number);
            }
        }
        let bounds = numbers.doubles()?;
        let buckets = numbers.longs()?;
        let scale = numbers.int()?;
        let zero_count = numbers.long()?;
        let zero_threshold = numbers.double()?;
        let (positive_offset, positive) = (numbers.int()?, numbers.longs()?);
        let (negative_offset, negative) = (numbers.int()?, numbers.longs()?);
        match self.kind {
            2 => {
                array(out, FLOAT8, &bounds);
                array(out, INT8, &buckets);
            }
            3 => {
                int4(out, scale);
                int8(out, zero_count);
                optional(out, Some(zero_threshold));
                int4(out, positive_offset);
                array(out, INT8, &positive);
                int4(out, negative_offset);
                array(out, INT8, &negative);
            }
            _ => {
                let (mut quantiles, mut values) = (Vec::new(), Vec::new());
                for _ in numbers.items()? {
                    quantiles.push(numbers.double()?.to_be_bytes());
                    values.push(numbers.double()?.to_be_bytes());
                }
                array(out, FLOAT8, &quantiles);
                array(out, FLOAT8, &values);
            }
        }
        Some(())
    }
}

impl<'a> Reader<'a> {
    /// One metric_point/1. `shared` are its fields from tenant to monotonic: those of the one before need no look.
    fn point(&mut self, shared: &mut &'a [u8]) -> Option<Point<'a>> {
        let event_id = self.take(16)?;
        let region = self.text()?;
        let received = self.long()?;
        if shared.is_empty() || !self.rest.starts_with(shared) {
            let start = self.rest;
            self.shared()?;
            *shared = start.get(..start.len() - self.rest.len())?;
        } else {
            self.take(shared.len())?;
        }
        let kind = *shared.get(shared.len().checked_sub(3)?)? >> 1;
        self.map()?;
        let series_id = self.long()?;
        self.long()?; // start_time
        let time = self.long()?;
        let flags = self.long()?;
        let value = self.optional()?;
        if self.present()? {
            self.long()?; // int_value
        }
        let numbers = Reader { rest: self.rest };
        self.pass_numbers()?;
        let receipt = received.checked_sub(received.rem_euclid(RECEIPT_NS))?;
        let sane = (SANE_FROM_NS..=receipt.checked_add(SANE_AHEAD_NS)?).contains(&time);
        let microseconds = |ns: i64| ns.div_euclid(1000).checked_sub(EPOCH_2000_US);
        Some(Point {
            event_id,
            region,
            received: microseconds(received)?,
            kind,
            series_id,
            time: microseconds(if sane { time } else { receipt })?,
            recorded: flags & NO_RECORDED_VALUE == 0,
            value,
            numbers,
        })
    }

    fn shared(&mut self) -> Option<()> {
        for _ in 0..3 {
            self.text()?; // tenant, service, host
        }
        self.map()?;
        for _ in 0..3 {
            self.text()?; // resource_schema_url, scope_name, scope_version
        }
        self.map()?;
        for _ in 0..4 {
            self.text()?; // scope_schema_url, metric_name, description, unit
        }
        // type, temporality and monotonic take a byte each.
        let (kind, temporality, monotonic) = (self.size()?, self.size()?, self.take(1)?);
        (kind <= 4 && temporality <= 2 && matches!(monotonic, [0 | 1])).then_some(())
    }

    /// From count to ordinal.
    fn pass_numbers(&mut self) -> Option<()> {
        self.long()?;
        for _ in 0..3 {
            self.optional()?;
        }
        self.pass_doubles()?;
        self.pass_longs()?;
        self.int()?;
        self.long()?;
        self.double()?;
        for _ in 0..2 {
            self.int()?;
            self.pass_longs()?;
        }
        let quantiles = self.items()?;
        for _ in quantiles.clone() {
            self.take(16)?;
        }
        self.end(&quantiles)?;
        let exemplars = self.items()?;
        for _ in exemplars.clone() {
            self.long()?;
            self.double()?;
            self.blob()?;
            self.blob()?;
            self.map()?;
        }
        self.end(&exemplars)?;
        self.int()?;
        Some(())
    }
}

fn field(out: &mut Vec<u8>, data: &[u8]) {
    out.extend_from_slice(&(data.len() as i32).to_be_bytes());
    out.extend_from_slice(data);
}

fn int4(out: &mut Vec<u8>, n: i32) {
    field(out, &n.to_be_bytes());
}

fn int8(out: &mut Vec<u8>, n: i64) {
    field(out, &n.to_be_bytes());
}

/// A float8, or null.
fn optional(out: &mut Vec<u8>, number: Option<f64>) {
    match number {
        Some(number) => field(out, &number.to_be_bytes()),
        None => null(out),
    }
}

fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(&(-1i32).to_be_bytes());
}

/// A one-dimensional array of 8-byte elements that starts at 1; an empty one has no dimension.
fn array(out: &mut Vec<u8>, oid: i32, elements: &[[u8; 8]]) {
    let header = if elements.is_empty() { vec![0, 0, oid] } else { vec![1, 0, oid, elements.len() as i32, 1] };
    out.extend_from_slice(&((4 * header.len() + 12 * elements.len()) as i32).to_be_bytes());
    for word in header {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for element in elements {
        field(out, element);
    }
}
