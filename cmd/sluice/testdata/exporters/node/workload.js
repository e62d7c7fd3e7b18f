// A workload as its authors would write it: OpenTelemetry's API, its SDK for Node.js with every default, and nothing of Sluice's.
// It prints what it sent, as JSON, for check.py to compare.
'use strict';

const { metrics, trace } = require('@opentelemetry/api');
const { logs, SeverityNumber } = require('@opentelemetry/api-logs');
const { NodeSDK } = require('@opentelemetry/sdk-node');

// A client may not wear somebody else's badge: the attribute must be gone by the time the telemetry is in Kafka.
const forged = { 'flowstate.org': 'forged' };

async function main() {
  const sdk = new NodeSDK();
  sdk.start();

  const tracer = trace.getTracer('workload');
  const logger = logs.getLogger('workload');
  tracer.startActiveSpan('digest', { attributes: { articles: 12, ...forged } }, (digest) => {
    tracer.startActiveSpan('summarise', (summarise) => {
      for (const article of [1, 2, 3]) {
        logger.emit({
          severityNumber: SeverityNumber.WARN,
          body: `summary of article ${article} is empty`,
          attributes: forged,
        });
      }
      summarise.end();
    });
    digest.end();
  });

  const meter = metrics.getMeter('workload');
  const tokens = meter.createCounter('tokens', { unit: '{token}' });
  tokens.add(1200, { direction: 'in', ...forged });
  tokens.add(300, { direction: 'out' });
  meter.createHistogram('latency', { unit: 's' }).record(0.25);

  for (const signal of ['forecast_breach', 'personal_use_company_account']) {
    logger.emit({
      eventName: 'flowstate.signal',
      severityNumber: SeverityNumber.INFO,
      attributes: { 'signal.type': signal, 'signal.severity': 'BLOCK' },
    });
  }

  await sdk.shutdown();
  console.log(JSON.stringify({ logs: 3, spans: 2, metrics: 3, signals: 1, filtered: 1 }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
