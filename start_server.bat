@echo off
rem Starts tandem in demo mode, for people who only want to click: the binary that lies beside this
rem file, in bin or in dist, or else the source with Go. Arguments are passed on: start_server.bat --listen :9000
setlocal
cd /d "%~dp0"

for %%b in (tandem.exe bin\tandem.exe dist\tandem-windows-amd64.exe) do (
  if exist "%%b" (
    "%%b" serve %*
    goto ended
  )
)

where go >nul 2>nul
if errorlevel 1 goto missing
echo Building tandem from source; the first time this takes a minute or two.
go run ./cmd/tandem serve %*
goto ended

:missing
echo There is neither a built tandem beside this file nor Go to build one.
echo Install Go 1.26 or later from https://go.dev/dl/ and start this again.
pause
exit /b 1

:ended
set code=%errorlevel%
rem The window of a double click would close before anybody has read why.
if not %code%==0 pause
exit /b %code%
