package accounts

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"flowstate.inc/sluice/auth"
)

// authenticate asks who sends the request, in a span of its own where the request has one that is recorded.
func (a *API) authenticate(r *http.Request) (auth.Admin, error) {
	if a.cfg.Tracer == nil || !trace.SpanFromContext(r.Context()).IsRecording() {
		return a.cfg.Authenticate(r)
	}
	ctx, span := a.cfg.Tracer.Start(r.Context(), "auth")
	defer span.End()
	return a.cfg.Authenticate(r.WithContext(ctx))
}

// endSpan ends the span of a request: its route, never its path, the org's slug and nobody's name.
func endSpan(span trace.Span, r *http.Request, st *requestState, out *countingWriter) {
	if span.IsRecording() {
		span.SetName(methodName(r.Method) + " " + st.route)
		span.SetAttributes(attribute.String("http.request.method", methodName(r.Method)), attribute.String("http.route", st.route),
			attribute.Int("http.response.status_code", out.status), attribute.String("sluice.request_id", st.id))
		if st.admin.Org != "" {
			span.SetAttributes(attribute.String("sluice.org", st.admin.Org))
		}
		if out.status >= 500 {
			span.SetStatus(codes.Error, http.StatusText(out.status))
		}
	}
	span.End()
}
