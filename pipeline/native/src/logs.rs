//! OTLP logs → log_record; see `pipeline/otlp/logs.py`.

use crate::avro;
use crate::request::{Encoded, Messages, Reason, Refusal, Request};
use crate::values::{Any, Attributes, is_id};
use crate::wire::{Counted, DEPTH, Fault, Fields, Part, Text, Wire, bits, inside, text};

const WARN: i32 = 13; // SeverityNumber: the first that is never shed
const LOGS: Messages = Messages {
    request: Part { children: bits(&[1]), shell: 0, counted: Counted::Resources },
    resource: Part { children: bits(&[2]), shell: bits(&[1, 3]), counted: Counted::Scopes },
    scope: Part { children: bits(&[2]), shell: bits(&[1, 3]), counted: Counted::Records },
    resource_name: "ResourceLogs",
    scope_name: "ScopeLogs",
};

#[derive(Default)]
struct LogRecord<'a> {
    time: i64,
    observed_time: i64,
    severity_number: i32,
    severity_text: Text<'a>,
    event_name: Text<'a>,
    body: Any<'a>,
    dropped: u32,
    trace_id: &'a [u8],
    span_id: &'a [u8],
    flags: u32,
}

#[inline]
fn read<'a>(data: &'a [u8], raws: &mut Vec<&'a [u8]>) -> Result<LogRecord<'a>, Fault> {
    raws.clear();
    let mut record = LogRecord::default();
    let mut fields = Fields::new(data, DEPTH);
    while let Some(field) = fields.next()? {
        match field {
            (1, Wire::Fixed64(n)) => record.time = n as i64,
            (2, Wire::Varint(n)) => record.severity_number = n as i32,
            (3, Wire::Bytes(data)) => record.severity_text = text(data)?,
            (5, Wire::Bytes(data)) => record.body.merge(data, inside(DEPTH)?)?,
            (6, Wire::Bytes(raw)) => raws.push(raw),
            (7, Wire::Varint(n)) => record.dropped = n as u32,
            (8, Wire::Fixed32(n)) => record.flags = n,
            (9, Wire::Bytes(data)) => record.trace_id = data,
            (10, Wire::Bytes(data)) => record.span_id = data,
            (11, Wire::Fixed64(n)) => record.observed_time = n as i64,
            (12, Wire::Bytes(data)) => record.event_name = text(data)?,
            _ => {}
        }
    }
    Ok(record)
}

pub fn encode(mut request: Request) -> Result<Encoded, Refusal> {
    let shed_below = request.rules.shed_below_severity.min(WARN);
    let (mut raws, mut attributes) = (Vec::new(), Attributes::default());
    request.scopes(&LOGS, |request, shared, scope_logs| {
        let Some(shared) = shared else {
            request.refuse(scope_logs.children.len(), Reason::RecordTooLarge);
            return Ok(());
        };
        request.records(scope_logs, 1, |request, data| {
            let record = read(data, &mut raws).map_err(|fault| fault.of("LogRecord"))?;
            if 0 < record.severity_number && record.severity_number < shed_below {
                if let Some(shed) = request.shed.get_mut((record.severity_number as usize - 1) / 4) {
                    *shed += 1;
                }
                return Ok(());
            }
            let time = if record.time == 0 { record.observed_time } else { record.time };
            request.add(&shared.fields, (shared.partition, time), |limits, out| {
                avro::long(out, record.time);
                avro::long(out, record.observed_time);
                avro::long(out, i64::from(record.severity_number));
                avro::blob(out, record.severity_text.as_bytes());
                avro::blob(out, record.event_name.as_bytes());
                limits.body(out, &record.body);
                let over = attributes.read(&raws, limits)?;
                attributes.write(out);
                avro::long(out, i64::from(record.dropped) + over as i64);
                avro::blob(out, if is_id(record.trace_id, 16) { record.trace_id } else { &[] });
                avro::blob(out, if is_id(record.span_id, 8) { record.span_id } else { &[] });
                avro::long(out, i64::from(record.flags));
                Ok(())
            })
        })
    })?;
    Ok(request.finish())
}
