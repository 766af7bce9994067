-- wrk sends what the generator sends
wrk.method = "POST"
wrk.body = '{"complexity":1,"data":{"number":1234}}'
wrk.headers["Content-Type"] = "application/json"
