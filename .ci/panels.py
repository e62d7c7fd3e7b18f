"""What .ci/panels.sh needs beside its servers: a judge, a load, and the questions of the dashboards. Python's own library only.

  panels.py judge PORTFILE                 an OpenAI-compatible chat API that finds every prompt in scope, and fails now and then; writes its port, serves until it is killed
  panels.py load URL CA KEY REVOKED        sends what the panels show, until it is killed; prints how many of which code
  panels.py ask PROMETHEUS START PICTURES FILE…
                                           every query of the dashboards over the time since START, and the promql blocks of the pages; exit 1 where one has no
                                           data. Draws each dashboard into the directory PICTURES, unless that is empty
"""

import collections
import http.client
import http.server
import itertools
import json
import math
import os
import re
import signal
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import panels_draw

# A query that may have no data, and why. Each is something that a run of a minute must not do, or cannot.
ALLOWED_EMPTY = {}


def judge(portfile):
    asked = itertools.count(1)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if next(asked) % 5 == 0:  # as the judges that there are
                self.send_error(503)
                return
            verdict = {"verdict": "in", "confidence": 0.95, "reason": "It is about the tickets."}
            answer = {
                "choices": [{"message": {"role": "assistant", "content": json.dumps(verdict)}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 600, "completion_tokens": 40},
            }
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with open(portfile, "w") as f:
        f.write(str(server.server_address[1]))
    server.serve_forever()


def attribute(key, value):
    return {"key": key, "value": {"stringValue": value}}


def requests(key, revoked):
    """Yields (path, headers, body): one round of all that a panel shows."""
    n = 0
    while True:
        n += 1
        now = str(time.time_ns())
        own = {"x-flowstate-key": key}
        resource = {"attributes": [attribute("service.name", "panels"), attribute("flowstate.org", "forged")]}
        logs = [
            {"timeUnixNano": now, "body": {"stringValue": f"line {i}"}, "attributes": [attribute("event.name", "panels.line")]} for i in range(5)
        ]
        prompt = f"Summarise the support ticket {chr(97 + n % 26) * (1 + n % 7)} of the customer"
        logs.append({"timeUnixNano": now, "body": {"stringValue": "claude_code.user_prompt"},
                     "attributes": [attribute("event.name", "user_prompt"), attribute("prompt", prompt)]})
        yield "/v1/logs", own, {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": logs}]}]}
        yield "/v1/traces", own, {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [
            {"traceId": f"{n:032x}", "spanId": f"{n:016x}", "name": "work", "kind": 1, "startTimeUnixNano": now, "endTimeUnixNano": now}]}]}]}
        yield "/v1/metrics", own, {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"metrics": [
            {"name": "panels.n", "gauge": {"dataPoints": [{"timeUnixNano": now, "asInt": str(n)}]}}]}]}]}
        yield "/v1/signals", own, [
            {"type": "forecast_breach", "id": f"panels-{now}"},
            {"type": "personal_use_company_account", "id": f"filtered-{now}"},
            {"type": "Not A Type", "id": f"invalid-{now}"},
        ]
        yield "/v1/signals", {"x-flowstate-key": revoked}, {"type": "forecast_breach"}
        yield "/v1/logs", {}, {"resourceLogs": []}
        yield "/v1/logs", own, None  # no JSON


def load(url, ca, key, revoked):
    codes = collections.Counter()

    def end(*_):
        print("sent:", ", ".join(f"{n} × {code}" for code, n in sorted(codes.items(), key=str)))
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    at = urllib.parse.urlsplit(url)
    trust = ssl.create_default_context(cafile=ca)
    connection = None
    for path, headers, body in requests(key, revoked):
        try:
            if connection is None:
                connection = http.client.HTTPSConnection(at.hostname, at.port, timeout=20, context=trust)
            data = b"{" if body is None else json.dumps(body).encode()
            connection.request("POST", path, data, {**headers, "Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            codes[answer.status] += 1
        except (OSError, http.client.HTTPException) as err:
            codes[type(err).__name__] += 1
            connection = None
        time.sleep(0.03)


def ask(prometheus, start, pictures, pages, dashboards):
    def api(path, **query):
        try:
            with urllib.request.urlopen(f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as r:
                return json.load(r)["data"]
        except urllib.error.HTTPError as err:
            return {"result": [], "error": err.read().decode()}

    end = time.time()
    values = {name: "|".join(api(f"label/{name}/values", **{"match[]": "sluice_build_info"})) for name in ("job", "instance")}
    asked, empty, allowed = 0, [], set()

    def data(name, expr):
        """The series of a query; one without data is noted. What stands in for missing data is left out: with it no query could be empty."""
        nonlocal asked
        expr = expr.replace("$__rate_interval", "10s")
        for variable, value in values.items():
            expr = expr.replace(f"${variable}", value)
        asked += 1
        shown = None
        for e in dict.fromkeys([expr, expr.replace(" or vector(0)", "")]):
            answer = api("query_range", query=e, start=start, end=end, step="1")
            result = [{"labels": r["metric"], "values": [(t, float(v)) for t, v in r["values"]]} for r in answer["result"]]
            shown = result if shown is None else shown
            if any(not math.isnan(v) for series in result for _, v in series["values"]):
                continue
            if name in ALLOWED_EMPTY:
                allowed.add(name)
                print(f"empty, as it may be: {name}: {ALLOWED_EMPTY[name]}")
            else:
                empty.append(f"{name}: {answer.get('error', 'no data')}: {e}")
        return shown

    for file in dashboards:
        dashboard = json.load(open(file))
        drawn = []
        for panel in dashboard["panels"]:
            targets = panel.get("targets", [])
            drawn.append((panel, [(t.get("legendFormat", ""), data(f"{dashboard['uid']} / {panel['title']} / {t['legendFormat']}", t["expr"])) for t in targets]))
        for annotation in dashboard["annotations"]["list"]:
            data(f"{dashboard['uid']} / {annotation['name']}, an annotation", annotation["expr"])
        if pictures:
            name = os.path.basename(file).removesuffix(".json") + ".svg"
            with open(os.path.join(pictures, name), "w") as f:
                f.write(panels_draw.dashboard(dashboard["title"], drawn, start, end))
    questions = [(page, q.strip()) for page in pages for q in re.findall(r"^```promql\n(.*?)^```", open(page).read(), re.S | re.M)]
    for page, question in questions:  # they are for a bad day: it is enough that they are understood
        error = api("query", query=question).get("error")
        if error:
            empty.append(f"{page}: {error}: {question}")
    for line in empty:
        print("EMPTY", line)
    for name in ALLOWED_EMPTY.keys() - allowed:
        print(f"has data, though it need not: {name}")
    print(f"{asked} queries of {len(dashboards)} dashboards and {len(questions)} of the docs, {len(allowed)} empty as they may be, {len(empty)} without data or wrong")
    return 1 if empty or not asked or not questions else 0


if __name__ == "__main__":
    command, arguments = sys.argv[1], sys.argv[2:]
    if command == "judge":
        judge(*arguments)
    elif command == "load":
        load(*arguments)
    elif command == "ask":
        files = arguments[3:]
        sys.exit(ask(arguments[0], float(arguments[1]), arguments[2], [f for f in files if f.endswith(".md")], [f for f in files if f.endswith(".json")]))
    else:
        sys.exit(__doc__)
