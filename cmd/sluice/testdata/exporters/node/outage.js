// Sends numbered spans and log records on OpenTelemetry's SDK until its standard input ends.
//
//     node outage.js grpc|http/protobuf|http/json PREFIX
//
// Every exporter has its defaults, set by the environment alone. It prints, as JSON, how many records it made, which of them the SDK has given
// up, in how many exports, and how many errors the SDK has logged.
'use strict';

const { diag, DiagLogLevel } = require('@opentelemetry/api');
const { SeverityNumber } = require('@opentelemetry/api-logs');
const { BatchLogRecordProcessor, LoggerProvider } = require('@opentelemetry/sdk-logs');
const { BasicTracerProvider, BatchSpanProcessor } = require('@opentelemetry/sdk-trace-base');

const [protocol, prefix] = process.argv.slice(2);
const suffix = { grpc: 'grpc', 'http/protobuf': 'proto', 'http/json': 'http' }[protocol];
const { OTLPTraceExporter } = require(`@opentelemetry/exporter-trace-otlp-${suffix}`);
const { OTLPLogExporter } = require(`@opentelemetry/exporter-logs-otlp-${suffix}`);

const logged = [];
const error = (...parts) => logged.push(parts.map(String).join(' '));
diag.setLogger({ error, warn() {}, info() {}, debug() {}, verbose() {} }, DiagLogLevel.ERROR);

const givenUp = [];
let failedExports = 0;

// Notes what an exporter gives up, and changes nothing.
function watch(exporter, nameOf) {
  const send = exporter.export.bind(exporter);
  exporter.export = (items, done) => send(items, (result) => {
    if (result.code !== 0) {
      failedExports += 1;
      givenUp.push(...items.map(nameOf));
    }
    done(result);
  });
  return exporter;
}

async function main() {
  const tracers = new BasicTracerProvider({ spanProcessors: [new BatchSpanProcessor(watch(new OTLPTraceExporter(), (s) => s.name))] });
  const loggers = new LoggerProvider({ processors: [new BatchLogRecordProcessor({ exporter: watch(new OTLPLogExporter(), (r) => r.body) })] });
  const tracer = tracers.getTracer('outage');
  const logger = loggers.getLogger('outage');
  let made = 0;
  const timer = setInterval(() => {
    tracer.startSpan(`${prefix}/span-${made}`).end();
    logger.emit({ severityNumber: SeverityNumber.INFO, body: `${prefix}/log-${made}` });
    made += 1;
  }, 100);
  for await (const ignored of process.stdin) void ignored;
  clearInterval(timer);
  await Promise.allSettled([tracers.shutdown(), loggers.shutdown()]);
  console.log(JSON.stringify({ made, given_up: givenUp, failed_exports: failedExports, logged: logged.length, first: logged[0] ?? '' }));
}

main().catch((e) => {
  console.error(e);
  process.exit(1);
});
